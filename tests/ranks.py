"""Runs a Python module as one process or as the ranks of a group, the way a launcher would."""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
OF_LAUNCHERS = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)


@dataclass(frozen=True)
class Ended:
    """How the ranks ended, in order of rank."""

    status: list[int]
    stdout: list[str]
    stderr: list[str]


def environment(**changes: str) -> dict[str, str]:
    """This process's own without a launcher's variables, on the CPU, with the packages and the tests importable."""
    kept = {name: value for name, value in os.environ.items() if name not in OF_LAUNCHERS}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    binaries = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    fixed = {"PYTHONPATH": path, "PATH": binaries, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    return kept | fixed | changes


def run_module(
    module: str, *arguments: str | Path, world: int = 1, ranks: int | None = None, timeout: float = 240
) -> Ended:
    """Starts `python -m module` once per rank, or for the first `ranks`; `world=1` sets no launcher's variables."""
    group = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            env=environment(**(group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {})),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks or world)
    ]
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return Ended([p.returncode for p in processes], [out for out, _ in outputs], [err for _, err in outputs])


def run_launcher(launcher: str, *arguments: str | Path, timeout: float = 400) -> str:
    """Runs `launcher`, whose `{port}` becomes a free one, with the arguments; returns stdout, of all ranks together."""
    done = subprocess.run(
        [*launcher.format(port=free_port()).split(), *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{launcher}: {done.stderr}"
    return done.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
