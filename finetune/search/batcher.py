"""One thread that owns the model, and answers together what waits together.

While a batch is in the model the next one gathers, so that nobody waits for a batch to fill and many users cost little
more than one.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from finetune.search.query import Answer, Query, Searcher
from shards.errors import Stopped

MOST_TOGETHER, MOST_WAITING = 32, 512


class Busy(Stopped):
    """More wait than may."""


@dataclass(frozen=True)
class _Job:
    """A query, or other work with the searcher."""

    work: Query | Callable[[Searcher], Any]
    future: "Future[Any]" = field(default_factory=Future)


class Batcher:
    """Give it to any number of threads; `with` ends the thread.

    Raises:
        Busy: from `ask` and `run`, when `MOST_WAITING` already wait.
    """

    def __init__(self, searcher: Searcher) -> None:
        self._searcher = searcher
        self._waiting: queue.Queue[_Job | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._answer_all, name="batcher", daemon=True)

    def __enter__(self) -> "Batcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.put(None)
        self._thread.join()

    def ask(self, query: Query, timeout: float) -> Answer:
        """Answers one query, together with others that wait; raises what `Searcher.search` raises, or TimeoutError."""
        return self._put(_Job(query)).result(timeout)

    def run(self, work: Callable[[Searcher], Any], timeout: float) -> Any:
        """Runs `work` on the thread that owns the model."""
        return self._put(_Job(work)).result(timeout)

    def _put(self, job: _Job) -> "Future[Any]":
        try:
            self._waiting.put_nowait(job)
        except queue.Full:
            raise Busy(f"{MOST_WAITING} queries wait already; try again in a moment") from None
        return job.future

    def _answer_all(self) -> None:
        while (job := self._waiting.get()) is not None:
            jobs = [job]
            while len(jobs) < MOST_TOGETHER:
                try:
                    following = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    self._answer(jobs)
                    return
                jobs.append(following)
            self._answer(jobs)

    def _answer(self, jobs: list[_Job]) -> None:
        wanted = [job for job in jobs if job.future.set_running_or_notify_cancel()]
        queries = [job for job in wanted if isinstance(job.work, Query)]
        if len(queries) > 1:
            try:
                answers = self._searcher.search([job.work for job in queries if isinstance(job.work, Query)])
            except Exception:  # one of them is at fault: each alone below, so that the others are answered
                pass
            else:
                for job, answer in zip(queries, answers, strict=True):
                    job.future.set_result(answer)
                wanted = [job for job in wanted if not job.future.done()]
        for job in wanted:
            self._answer_one(job)

    def _answer_one(self, job: _Job) -> None:
        try:
            work = job.work
            job.future.set_result(self._searcher.search([work])[0] if isinstance(work, Query) else work(self._searcher))
        except Exception as error:
            job.future.set_exception(error)
