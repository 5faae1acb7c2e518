"""A rank that makes no step for too long ends, with a stack of each of its threads.

Where one rank falls silent (a dead disk, a stopped process, a cable) the others wait for it in a collective. Each rank
watches itself, so no network is needed to find that out: all that can still speak tell where they are, and end, and
the job's supervisor starts them again.
"""

import faulthandler
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class Pulse:
    """When this rank last got on."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.step = 0

    def beat(self, step: int) -> None:
        """Says that step `step` is done; called from the training loop."""
        self.last, self.step = time.monotonic(), step

    def rest(self) -> None:
        """Says that no step will come until the next beat, however long that takes."""
        self.last = math.inf


@contextmanager
def watching(seconds: float, rank: int) -> Iterator[Pulse]:
    """Ends this process with status 1 when `beat` is not called for `seconds`."""
    pulse, over = Pulse(), threading.Event()
    watch = threading.Thread(target=_watch, args=(pulse, over, seconds, rank), name="watchdog", daemon=True)
    watch.start()
    try:
        yield pulse
    finally:
        over.set()
        watch.join()


def _watch(pulse: Pulse, over: threading.Event, seconds: float, rank: int) -> None:
    while not over.wait(min(1.0, seconds / 4)):
        if time.monotonic() - pulse.last > seconds:
            _end(f"rank {rank} has made no step for {seconds:g} s after step {pulse.step}; its threads stand here:")


def _end(message: str) -> NoReturn:
    sys.stderr.write(f"error: {message}\n")
    sys.stderr.flush()
    faulthandler.dump_traceback(sys.stderr, all_threads=True)
    os._exit(1)  # the main thread waits in a collective and would never come to an end of its own
