"""What a run reports: the same numbers as a line for people, a JSON line, and TensorBoard scalars."""

import json
import resource
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from pretrain.config import PretrainConfig
from pretrain.folder import BOARD, LOG, read_lines
from shards.console import Progress, clock, progress
from shards.storage import write_atomically


class Metrics:
    """Averages what happens between two reports.

    Args:
        run: The run folder, for log.jsonl and TensorBoard files.
        start: Steps taken in earlier lives of this run.
        total: Steps of the whole run, for the ETA.
        batch: Samples of the global batch.
    """

    def __init__(self, run: Path, start: int, total: int, batch: int, bar: Progress) -> None:
        self.total, self.batch, self._bar = total, batch, bar
        _forget_after(run / LOG, start)
        self._file = (run / LOG).open("a")
        self._board = SummaryWriter(str(run / BOARD), purge_step=start)
        self._reset()

    def add(self, losses: dict[str, float], waited: float) -> None:
        """Counts one step: global losses, seconds spent waiting for data."""
        self._steps += 1
        self._waited += waited
        for name, value in losses.items():
            name = "loss" if name == "loss" else f"loss/{name}"
            self._sums[name] += value
            self._counts[name] += 1  # a step may train only some of the objectives
        self._bar.advance()

    def report(self, step: int, lr: float) -> None:
        """Writes the averages since the last report; `step` counts finished steps.

        Beside them: `samples` seen since the start of the run, `memory` of this rank at its peak in bytes
        (`peak_memory`), `eta` in seconds, and `time` in Unix seconds.
        """
        seconds = time.monotonic() - self._start
        values = {name: total / self._counts[name] for name, total in self._sums.items()}
        values |= {
            "lr": lr,
            "samples": step * self.batch,
            "samples_per_second": self._steps * self.batch / seconds,
            "data_wait": self._waited / seconds,
            "memory": peak_memory(),
            "eta": (self.total - step) * seconds / self._steps,
        }
        now = time.time()
        self._file.write(json.dumps({"step": step, "time": now, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step, walltime=now)
        self._bar.say(_line(step, self.total, values))
        self._reset()

    def close(self) -> None:
        self._file.close()
        self._board.close()

    def _reset(self) -> None:
        self._start = time.monotonic()
        self._steps, self._waited = 0, 0.0
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)


class NoMetrics:
    """What the other ranks report: nothing."""

    def add(self, losses: dict[str, float], waited: float) -> None: ...

    def report(self, step: int, lr: float) -> None: ...


@contextmanager
def reporting(config: PretrainConfig, start: int, rank: int) -> Iterator[Metrics | NoMetrics]:
    """Metrics with a progress bar on rank 0; `start` counts the steps of earlier lives."""
    if rank != 0:
        yield NoMetrics()
        return
    total = config.run.steps
    with progress("train", total - start) as bar:
        metrics = Metrics(Path(config.run.out), start, total, config.data.global_batch, bar)
        try:
            yield metrics
        finally:
            metrics.close()


def peak_memory() -> int:
    """The most bytes that this process has held: tensors on its accelerator, or without one all that is resident."""
    if torch.accelerator.is_available():
        return torch.accelerator.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


def _line(step: int, total: int, values: dict[str, float]) -> str:
    losses = "  ".join(f"{name.removeprefix('loss/')} {v:.3f}" for name, v in values.items() if name.startswith("loss"))
    return (
        f"step {step}/{total}  {values['samples']:,} samples  {losses}  lr {values['lr']:.2e}  "
        f"{values['samples_per_second']:.0f} samples/s  data {values['data_wait']:.0%}  "
        f"memory {values['memory'] / 1e9:.2f} GB  ETA {clock(values['eta'])}"
    )


def _forget_after(log: Path, start: int) -> None:
    """Drops lines of steps that a continued run is about to take again, and one that a kill cut off."""
    if log.is_file():
        kept = [json.dumps(line) + "\n" for line in read_lines(log) if line["step"] <= start]
        write_atomically(log, "".join(kept).encode())
