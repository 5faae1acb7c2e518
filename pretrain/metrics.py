"""What a run reports: the same numbers as a line for people, a JSON line, and TensorBoard scalars."""

import json
import resource
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from pretrain import distributed
from pretrain.config import PretrainConfig
from pretrain.devices import device_name, peak_flops
from pretrain.flops import FlopMeter, KnownFlops, meter
from pretrain.folder import BOARD, LOG, read_lines
from pretrain.run import flat
from pretrain.task import Task
from pretrain.trackers import Tracker, open_trackers
from shards.console import Progress, clock, progress
from shards.parts import Counts
from shards.storage import write_atomically


class Metrics:
    """Averages what happens between two reports.

    Args:
        run: The run folder, for log.jsonl and TensorBoard files.
        start: Steps taken in earlier lives of this run.
        total: Steps of the whole run, for the ETA.
        batch: Samples of the global batch.
        meter: What counts this rank's FLOPs, closed here; None where they cannot be counted.
        peak: FLOP/s of this rank's device, None where they are not known.
        trackers: Who else gets the numbers, closed here.
    """

    def __init__(
        self,
        run: Path,
        start: int,
        total: int,
        batch: int,
        bar: Progress,
        meter: FlopMeter | KnownFlops | None,
        peak: float | None,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self.total, self.batch, self._bar, self._meter = total, batch, bar, meter
        self._peak, self._trackers = peak, trackers
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
        self._flops += self._meter.step if self._meter else 0
        self._bar.advance()

    def report(self, step: int, lr: float, data: Mapping[str, int]) -> None:
        """Writes the averages since the last report; `step` counts finished steps.

        Beside them: `samples` seen since the start of the run, `memory` of this rank at its peak in bytes
        (`peak_memory`), `eta` in seconds, and `time` in Unix seconds. `tflops` are model TFLOP/s of this
        rank's device (`pretrain.flops`) and `mfu` their share of its peak, each where it is known. `data` says what
        became of the samples that were read (`data_counts`).
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
            **data,
        }
        if self._meter:
            values["tflops"] = self._flops / seconds / 1e12
            self._meter.renew()
        if self._meter and self._peak:
            values["mfu"] = self._flops / seconds / self._peak
        now = time.time()
        self._file.write(json.dumps({"step": step, "time": now, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step, walltime=now)
        for tracker in self._trackers:
            tracker.log(step, values)
        self._bar.say(_line(step, self.total, values))
        self._reset()

    def close(self) -> None:
        self._file.close()
        self._board.close()
        for tracker in self._trackers:
            tracker.close()
        if self._meter:
            self._meter.close()

    def _reset(self) -> None:
        self._start = time.monotonic()
        self._steps, self._flops, self._waited = 0, 0, 0.0
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)


class NoMetrics:
    """What the other ranks report: nothing."""

    def add(self, losses: dict[str, float], waited: float) -> None: ...

    def report(self, step: int, lr: float, data: Mapping[str, int]) -> None: ...


@contextmanager
def reporting(
    config: PretrainConfig, start: int, rank: int, task: Task, flops: Mapping[tuple[str, ...], int]
) -> Iterator[Metrics | NoMetrics]:
    """Metrics with a progress bar on rank 0.

    Args:
        start: Steps of earlier lives.
        flops: Of a step by its objectives, where they were counted before.
    """
    if rank != 0:
        yield NoMetrics()
        return
    total = config.run.steps
    with progress("train", total - start) as bar:
        metrics = Metrics(
            Path(config.run.out),
            start,
            total,
            config.data.global_batch,
            bar,
            meter(task, config.engine, flops),
            peak_flops(device_name()),
            open_trackers(config.run.track, Path(config.run.out), flat(config.model_dump(mode="json"))),
        )
        try:
            yield metrics
        finally:
            metrics.close()


def data_counts(counts: Counts) -> dict[str, int]:
    """`read` = `yielded` + `substituted` (damaged) + `filtered`: samples of all ranks since this process began.

    Every rank calls it.
    """
    named = {"read": counts.read, "yielded": counts.yielded, "substituted": counts.substituted}
    named["filtered"] = counts.filtered.total()
    own = torch.tensor(list(named.values()), device=distributed.collective_device())
    return dict(zip(named, distributed.sum_over_ranks(own).tolist(), strict=True))


def peak_memory() -> int:
    """The most bytes that this process has held: tensors on its accelerator, or without one all that is resident."""
    if torch.accelerator.is_available():
        return torch.accelerator.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


def _line(step: int, total: int, values: dict[str, float]) -> str:
    losses = "  ".join(f"{name.removeprefix('loss/')} {v:.3f}" for name, v in values.items() if name.startswith("loss"))
    speed = f"{values['tflops']:.3g} TFLOP/s  " if "tflops" in values else ""
    speed += f"MFU {values['mfu']:.1%}  " if "mfu" in values else ""
    lost = "".join(f"{values[name]} {name}  " for name in ("substituted", "filtered") if values[name])
    return (
        f"step {step}/{total}  {values['samples']:,} samples  {losses}  lr {values['lr']:.2e}  "
        f"{values['samples_per_second']:.0f} samples/s  data {values['data_wait']:.0%}  {lost}"
        f"memory {values['memory'] / 1e9:.2f} GB  {speed}ETA {clock(values['eta'])}"
    )


def _forget_after(log: Path, start: int) -> None:
    """Drops lines of steps that a continued run is about to take again, and one that a kill cut off."""
    if log.is_file():
        kept = [json.dumps(line) + "\n" for line in read_lines(log, "step") if line["step"] <= start]
        write_atomically(log, "".join(kept).encode())
