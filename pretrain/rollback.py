"""What happens to a run that meets a batch it cannot bear: back to the last checkpoint, and past that batch.

RUN/quarantine.jsonl has one line for each such batch. It outlives the process: a later life of the run passes over the
same batches, and all lives together share one budget.
"""

import json
import math
from collections import deque
from pathlib import Path
from typing import Any

from pretrain.folder import LEDGER, read_lines
from pretrain.stepped import Sick
from shards.storage import write_atomically

WINDOW = 128
"""Losses that a spike is measured against."""
FEWEST = 16


def read_ledger(run: Path) -> list[dict[str, Any]]:
    """The entries in the order they were made: `batch` (number of the global batch) and `reason`."""
    return read_lines(run / LEDGER, "batch", "reason")


def check_budget(run: Path, sick: Sick, saved: Path | None, budget: int) -> None:
    """Raises `sick` again, with the reason, where the run cannot go back.

    Every rank calls it before the ledger grows, and decides alike.
    """
    before = len(read_ledger(run))
    if saved is None:
        raise type(sick)(f"{sick}; there is no checkpoint yet to go back to") from sick
    if before >= budget:
        raise type(sick)(f"{sick}; `run.max_rollbacks` (={budget}) are used up, see {run / LEDGER}") from sick


def quarantine(run: Path, batch: int, sick: Sick) -> None:
    """Adds a batch to the ledger. Only rank 0 calls it."""
    entries = [*read_ledger(run), {"batch": batch, "reason": str(sick)}]
    write_atomically(run / LEDGER, "".join(json.dumps(entry) + "\n" for entry in entries).encode())


class SpikeGuard:
    """The largest loss that is no spike: so many standard deviations above the mean of the last `WINDOW` losses.

    Args:
        deviations: None finds no spikes. There is none either before `FEWEST` losses.
    """

    def __init__(self, deviations: float | None) -> None:
        self.deviations = deviations
        self._losses: deque[float] = deque(maxlen=WINDOW)

    def add(self, loss: float) -> None:
        self._losses.append(loss)

    @property
    def limit(self) -> float:
        if self.deviations is None or len(self._losses) < FEWEST:
            return math.inf
        mean = sum(self._losses) / len(self._losses)
        variance = sum((loss - mean) ** 2 for loss in self._losses) / len(self._losses)
        return mean + self.deviations * math.sqrt(variance)

    def state_dict(self) -> list[float]:
        return list(self._losses)

    def load_state_dict(self, losses: list[float]) -> None:
        self._losses = deque(losses, maxlen=WINDOW)
