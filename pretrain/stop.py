"""A polite end: when a signal asks any rank, all finish the step, save, and leave with a status that means "again".

SIGTERM is what Kubernetes, Slurm and torchrun send before they kill; SIGUSR1 is what Slurm can send ahead of a time
limit. The request travels with the losses (`Engine.step`), so that the agreement between ranks costs no collective.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

RESTART = os.EX_TEMPFAIL
"""Exit status 75, "temporary failure, try again": the same command with `run.resume=auto` continues the run."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Interrupted(SystemExit):
    """The run was asked to stop and is saved. Ends the process with status `RESTART`, whichever command it runs."""

    def __init__(self) -> None:
        super().__init__(RESTART)


class Request:
    """Whether this process has been asked to stop."""

    def __init__(self) -> None:
        self.asked = False

    def note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


@contextmanager
def listening() -> Iterator[Request]:
    """Notes `SIGNALS` instead of dying; outside the main thread, where Python forbids that, does nothing."""
    request = Request()
    here = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, request.note) for number in SIGNALS} if here else {}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: one that Python did not set


def spare_worker(number: int) -> None:
    """For data workers, when they start: outlive the first SIGTERM, since the last step still needs its data.

    torchrun and Slurm signal whole process groups, and torch's worker dies at once. A second SIGTERM ends it, so that
    its parent can still clean up.
    """
    signal.signal(signal.SIGTERM, lambda signum, frame: signal.signal(signum, signal.SIG_DFL))
