"""Runs independent jobs: in this process, in several on this machine, or on a Ray cluster.

    jobs -> function(*shared, *job) in any order, anywhere -> results as they come

A job must not depend on another, and its result must say which job it was: the order of results is not defined.
"""

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from shards.errors import Stopped, UserError

ExecutorName = Literal["local", "ray"]
_AHEAD = 2
"""Jobs handed out per worker: one at work, one waiting."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Executor:
    """Where jobs run.

    Attributes:
        workers: Processes (`local`; 1 is this one) or jobs at a time (`ray`).
    """

    name: ExecutorName = "local"
    workers: int = 1

    def __post_init__(self) -> None:
        if self.name not in ("local", "ray"):
            raise UserError(f"`executor` (={self.name}) must be local or ray")
        if self.workers < 1:
            raise UserError(f"`workers` (={self.workers}) must be at least 1")
        if self.name == "ray":
            _import_ray()

    def run(
        self, function: Callable[..., Any], shared: tuple[Any, ...], jobs: Iterable[tuple[Any, ...]]
    ) -> Iterator[Any]:
        """Calls `function(*shared, *job)` for each job; `shared` reaches each worker once.

        Raises:
            Stopped: a worker process died.
            Exception: the first one that a job raised; jobs that have not begun are dropped.
        """
        if self.name == "ray":
            yield from _run_ray(function, shared, iter(jobs), self.workers)
        elif self.workers > 1:
            yield from _run_processes(function, shared, iter(jobs), self.workers)
        else:
            yield from (function(*shared, *job) for job in jobs)


def _run_processes(
    function: Callable[..., Any], shared: tuple[Any, ...], jobs: Iterator[tuple[Any, ...]], workers: int
) -> Iterator[Any]:
    """Forked, so that `shared` is not copied and a parent's lock on the folder is held by its workers too."""
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, _adopt, (function, shared, os.getpid())) as pool:
        try:
            running = {pool.submit(_call, job) for job in islice(jobs, _AHEAD * workers)}
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                running |= {pool.submit(_call, job) for job in islice(jobs, len(done))}
                yield from (future.result() for future in done)
        except BrokenProcessPool:
            raise Stopped("a worker process died (killed, or out of memory): go on with --resume") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_adopted: tuple[Callable[..., Any], tuple[Any, ...]] | None = None


def _adopt(function: Callable[..., Any], shared: tuple[Any, ...], parent: int) -> None:
    """Makes this process a worker that dies with its parent, so that a resumed build finds the folder unlocked."""
    global _adopted
    _adopted = (function, shared)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends its workers.
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _call(job: tuple[Any, ...]) -> Any:
    assert _adopted is not None
    function, shared = _adopted
    return function(*shared, *job)


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UserError("`executor` (=ray) needs the library ray: pip install 'duostream[ray]'") from None
    return ray


def _run_ray(
    function: Callable[..., Any], shared: tuple[Any, ...], jobs: Iterator[tuple[Any, ...]], workers: int
) -> Iterator[Any]:
    ray = _connected(workers)
    task = ray.remote(max_retries=3)(_unpacked)
    everywhere = ray.put((function, shared))
    running: list[Any] = []
    try:
        running = [task.remote(everywhere, job) for job in islice(jobs, workers)]
        while running:
            done, running = ray.wait(running)
            running += [task.remote(everywhere, job) for job in islice(jobs, len(done))]
            yield from ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise Stopped(f"Ray stopped the build: {error}; go on with --resume") from error
    finally:
        for reference in running:
            ray.cancel(reference)


def _connected(workers: int) -> Any:
    """Ray, connected to the cluster that RAY_ADDRESS names, else started on this machine; it ends with this process.

    Every node needs this package, the source's files and the output folder at the same paths.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # A build tells nobody of itself.
    ray = _import_ray()
    if not ray.is_initialized():
        quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
        alone = {"num_cpus": workers, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        try:
            ray.init(**quiet, **({} if os.environ.get("RAY_ADDRESS") else alone))
        except Exception as error:  # Ray raises whatever went wrong: ConnectionError, RuntimeError, plain Exception.
            raise Stopped(f"Ray cannot be reached or started: {' '.join(str(error).split())}") from error
    return ray


def _unpacked(packed: tuple[Callable[..., Any], tuple[Any, ...]], job: tuple[Any, ...]) -> Any:
    function, shared = packed
    return function(*shared, *job)
