"""The numbers of an interval: by hand, and the same in the log, in TensorBoard and for people."""

import re
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pretrain.flops import FlopMeter
from pretrain.folder import read_lines
from pretrain.metrics import Metrics, data_counts, peak_memory
from pretrain.task import Task
from shards.parts import Counts
from tests.pretrain.tiny import VOCABULARY, random_batch, tiny_config


class Said:
    """A progress display that remembers."""

    def __init__(self) -> None:
        self.done = 0
        self.lines: list[str] = []

    def advance(self, n: int = 1) -> None:
        self.done += n

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def ticking(monkeypatch):
    """A clock that the test moves."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_an_interval_by_hand(tmp_path, ticking):
    said = Said()
    metrics = Metrics(tmp_path, start=10, total=5010, batch=8, bar=said, meter=None, peak=None)
    metrics.add({"loss": 3.0, "itc": 1.0, "mlm": 2.0}, waited=1.0)
    metrics.add({"loss": 5.0, "itc": 5.0}, waited=0.0)  # a step may train only some of the objectives
    ticking[0] += 4.0
    metrics.report(12, lr=0.25, data={"read": 20, "yielded": 16, "substituted": 4, "filtered": 0})
    metrics.close()
    (line,) = read_lines(tmp_path / "log.jsonl")
    memory, at = line.pop("memory"), line.pop("time")
    assert line == {
        "step": 12,
        "loss": 4.0,
        "loss/itc": 3.0,
        "loss/mlm": 2.0,
        "lr": 0.25,
        "samples": 96,
        "samples_per_second": 4.0,
        "data_wait": 0.25,
        "eta": 9996.0,
        "read": 20,
        "yielded": 16,
        "substituted": 4,
        "filtered": 0,
    }
    assert said.done == 2
    shown = re.sub(r"memory \d+\.\d+ GB", "memory M", said.lines[0])
    assert shown == (
        "step 12/5010  96 samples  loss 4.000  itc 3.000  mlm 2.000  lr 2.50e-01  4 samples/s  data 25%  "
        "4 substituted  memory M  ETA 2:46:36"
    )
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name, value in {**line, "memory": memory}.items():
        if name != "step":
            (scalar,) = board.Scalars(name)
            assert (scalar.step, scalar.wall_time) == (12, at)
            assert scalar.value == pytest.approx(value, rel=1e-6)


def test_speed_and_its_share_of_the_peak(tmp_path, ticking):
    task = Task(tiny_config().model, tiny_config().objectives, VOCABULARY)
    meter, said = FlopMeter(task), Said()
    metrics = Metrics(tmp_path, start=0, total=2, batch=4, bar=said, meter=meter, peak=1e9)
    for _ in range(2):
        task(random_batch(4))
        metrics.add({"loss": 1.0}, waited=0.0)
    ticking[0] += 4.0
    metrics.report(2, lr=0.25, data=data_counts(Counts(yielded=8, read=8)))
    metrics.close()
    (line,) = read_lines(tmp_path / "log.jsonl")
    assert line["tflops"] == pytest.approx(meter.step / 2 / 1e12)
    assert line["mfu"] == pytest.approx(meter.step / 2 / 1e9)
    assert f"{line['tflops']:.3g} TFLOP/s  MFU {line['mfu']:.1%}  ETA" in said.lines[0]


@pytest.mark.skipif(torch.accelerator.is_available(), reason="counts the accelerator's memory, not this process's")
def test_memory_is_what_was_held_at_the_peak():
    """Against the kernel's own account in another place."""
    held = torch.ones(2**24)
    (told,) = re.findall(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert peak_memory() == pytest.approx(int(told) * 1024, rel=0.02)
    assert peak_memory() > held.nbytes


def test_a_continued_run_forgets_what_it_takes_again(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    Metrics(tmp_path, start=2, total=9, batch=8, bar=Said(), meter=None, peak=None).close()
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
