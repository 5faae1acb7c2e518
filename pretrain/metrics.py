"""What a run reports: the same numbers as a line for people, a JSON line, and TensorBoard scalars."""

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from shards.console import Progress, progress

LOG = "log.jsonl"


class Metrics:
    """Averages what happens between two reports.

    Args:
        run: The run folder, for log.jsonl and TensorBoard files.
        start: Steps taken in earlier lives of this run.
        total: Steps of the whole run, for the ETA.
    """

    def __init__(self, run: Path, start: int, total: int, bar: Progress) -> None:
        self.total, self._bar = total, bar
        _forget_after(run / LOG, start)
        self._file = (run / LOG).open("a")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=start)
        self._reset()

    def add(self, losses: dict[str, float], samples: int, waited: float) -> None:
        """Counts one step: global losses, samples of the global batch, seconds spent waiting for data."""
        self._steps += 1
        self._samples += samples
        self._waited += waited
        for name, value in losses.items():
            name = "loss" if name == "loss" else f"loss/{name}"
            self._sums[name] += value
            self._counts[name] += 1  # a step may train only some of the objectives
        self._bar.advance()

    def report(self, step: int, lr: float) -> None:
        """Writes the averages since the last report; `step` counts finished steps."""
        seconds = time.monotonic() - self._start
        values = {name: total / self._counts[name] for name, total in self._sums.items()}
        values |= {"lr": lr, "samples_per_second": self._samples / seconds, "data_wait": self._waited / seconds}
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        self._bar.say(_line(step, self.total, values, eta=(self.total - step) * seconds / self._steps))
        self._reset()

    def close(self) -> None:
        self._file.close()
        self._board.close()

    def _reset(self) -> None:
        self._start = time.monotonic()
        self._steps, self._samples, self._waited = 0, 0, 0.0
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)


class NoMetrics:
    """What the other ranks report: nothing."""

    def add(self, losses: dict[str, float], samples: int, waited: float) -> None: ...

    def report(self, step: int, lr: float) -> None: ...


@contextmanager
def reporting(run: Path, start: int, total: int, rank: int) -> Iterator[Metrics | NoMetrics]:
    """Metrics with a progress bar on rank 0."""
    if rank != 0:
        yield NoMetrics()
        return
    with progress("train", total - start) as bar:
        metrics = Metrics(run, start, total, bar)
        try:
            yield metrics
        finally:
            metrics.close()


def _line(step: int, total: int, values: dict[str, float], eta: float) -> str:
    losses = "  ".join(f"{name.removeprefix('loss/')} {v:.3f}" for name, v in values.items() if name.startswith("loss"))
    minutes, seconds = divmod(round(eta), 60)
    return (
        f"step {step}/{total}  {losses}  lr {values['lr']:.2e}  {values['samples_per_second']:.0f} samples/s  "
        f"data {values['data_wait']:.0%}  ETA {minutes}:{seconds:02d}"
    )


def _forget_after(log: Path, start: int) -> None:
    """Drops lines of steps that a continued run is about to take again."""
    if log.is_file():
        kept = [line for line in log.read_text().splitlines() if json.loads(line)["step"] <= start]
        log.write_text("".join(line + "\n" for line in kept))
