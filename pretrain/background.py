"""Work in a thread of its own, which may take so long and no longer."""

import threading
import time
from collections.abc import Callable
from typing import Any

from safetensors import SafetensorError

from shards.errors import UserError

EXPECTED = (OSError, UserError, SafetensorError, RuntimeError)
"""What disks do to writers; torch's own raises RuntimeError. Anything else is a mistake of ours."""


class Job:
    """Begins `work` at once.

    Args:
        seconds: After so long it has failed. Its thread is left alone: one that a dead disk holds cannot be ended.

    Attributes:
        failure: Why it failed; one that has failed stays so, even if its thread comes to an end later.
    """

    def __init__(self, work: Callable[[], Any], seconds: float) -> None:
        self.failure: Exception | None = None
        self._work, self._seconds = work, seconds
        self._result: Any = None
        self._raised: Exception | None = None
        self._deadline = time.monotonic() + seconds
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread is there, failed or not."""
        return self._thread.is_alive()

    @property
    def result(self) -> Any:
        """What `work` returned."""
        assert not self.alive
        assert self.failure is None
        return self._result

    def look(self) -> tuple[bool, bool]:
        """Whether it goes on, and whether it has failed. Raises what nobody expects of a disk."""
        alive = self.alive  # asked once: it may end at any moment
        if self.failure is None and not alive:
            if self._raised and not isinstance(self._raised, EXPECTED):
                raise self._raised
            self.failure = self._raised
        elif self.failure is None and time.monotonic() >= self._deadline:
            self.failure = TimeoutError(f"not written within {self._seconds:g} s (half of `run.silence_timeout`)")
        failed = self.failure is not None
        return alive and not failed, failed

    def wait(self, seconds: float | None = None) -> None:
        """Until it has ended or failed, at most `seconds`."""
        left = max(0.0, self._deadline - time.monotonic())
        self._thread.join(left if seconds is None else min(seconds, left))

    def _run(self) -> None:
        try:
            self._result = self._work()
        except Exception as error:
            self._raised = error
        del self._work  # and with it what it was to write
