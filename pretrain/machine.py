"""What a rank makes of the machine it runs on: its group of one, its cores, and gloo's threads at the end."""

import contextlib
import ctypes
import os
import socket
import time
from pathlib import Path

import torch
import torch.distributed as dist

LAST_SECONDS = 10.0
"""Longest wait, at the end of a process, for threads that finish a collective."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
KEPT_BYTES = 256 * 2**20
"""Larger blocks go back to the system when they are released."""


def world_from_environment() -> int:
    """The number of processes that the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank_from_environment() -> int:
    """This process's number among them."""
    return int(os.environ.get("RANK", "0"))


def alone() -> dict[str, str]:
    """The variables that a launcher would set for one process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in found.items()}


def join_again(backend: str, restarts: int) -> None:
    """Joins a group that torchrun started again. Its store still has the addresses of the ranks that died."""
    store, rank, world = next(dist.rendezvous("env://"))
    dist.init_process_group(backend, store=dist.PrefixStore(f"restart-{restarts}", store), rank=rank, world_size=world)


def wait_for_gloo() -> None:
    """Waits, where the group has ended, until gloo's threads rest.

    Such a thread lets go of its tensors a moment after their collective is done. For that it needs the interpreter, and
    it aborts the process if that is going down by then. DeepSpeed keeps references to the group, so that destroying it
    does not join the threads.
    """
    deadline, resting = time.monotonic() + LAST_SECONDS, 0
    while resting < 5 and time.monotonic() < deadline:
        time.sleep(0.005)  # gives the interpreter to whoever waits for it
        resting = resting + 1 if _gloo_rests() else 0


def _gloo_rests() -> bool:
    """Whether each thread that runs collectives sleeps; always true where the system does not tell."""
    for thread in sorted(Path("/proc/self/task").glob("*")):  # a list: an iterator left half-way would warn
        with contextlib.suppress(OSError):  # it has just ended
            name, state = (thread / "stat").read_text().partition("(")[2].rsplit(") ", 1)
            if "gloo" in name and not state.startswith("S"):
                return False
    return True


def repeat_exactly() -> None:
    """Two threads that add gradients of one row (a negative drawn twice) would do it in either order."""
    torch.use_deterministic_algorithms(True)
    # Filling fresh memory is a check for others' bugs, at the price of a pass over it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a module property


def share_cores() -> None:
    """Ranks of one machine that all use every core are slower than one rank alone."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
    if local > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local))


def keep_memory() -> None:
    """Keeps what tensors on the CPU release for those of the next step.

    glibc hands large blocks back to the system at once, which then clears each page anew: up to half of a step's time.
    `MALLOC_MMAP_THRESHOLD_` and `MALLOC_TRIM_THRESHOLD_` in the environment are left as they are; so are other
    allocators.
    """
    for option, value, variable in (
        (M_MMAP_THRESHOLD, KEPT_BYTES, "MALLOC_MMAP_THRESHOLD_"),
        (M_TRIM_THRESHOLD, -1, "MALLOC_TRIM_THRESHOLD_"),
    ):
        if variable not in os.environ:
            with contextlib.suppress(AttributeError):  # a C library without it
                ctypes.CDLL(None).mallopt(option, value)
