"""What a run folder tells about its run, whether that is going or not. Only reads, so it disturbs no run.

A run is `going` or `dead` where the process that runs it can be seen from here (`pretrain.process`). From elsewhere
only its signs of life count: `going` if the last is no older than `PATIENCE` usual intervals, else `silent`.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from pretrain.folder import CHECKPOINTS, CONFIG, DAMAGE, LEDGER, LOG, newest_checkpoint, read_lines
from pretrain.process import Process, read_process
from shards.console import clock
from shards.errors import UserError

PATIENCE = 3
SHORTEST_SILENCE = 60.0
"""Seconds; first steps, saves and slow file systems take that long in runs that log several times a second."""

State = Literal["going", "silent", "dead", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Saved:
    """The newest checkpoint; `age` in seconds."""

    path: str
    step: int
    age: float


@dataclass(frozen=True)
class Status:
    """What `pretrain status` shows; what is not known yet is None.

    Attributes:
        because: How `state` is known.
        losses: Averages over the last interval that was logged; so are `lr` and `samples_per_second`.
        eta: Seconds to the last step, None for a run that is not going.
        log_age: Seconds since the last line of the log.
        quarantined: Global batches that were passed over as sick.
        damaged: Different samples that were left out as damaged, over all ranks and epochs.
    """

    run: str
    state: State
    because: str
    step: int
    steps: int
    samples: int
    losses: dict[str, float]
    lr: float | None
    samples_per_second: float | None
    eta: float | None
    log_age: float | None
    checkpoint: Saved | None
    quarantined: int
    damaged: int


def read_status(run: Path) -> Status:
    """Looks at a run folder.

    Raises:
        UserError: it is no run folder, or a file in it is damaged.
    """
    config = _config(run)
    now, log, process, saved = time.time(), read_lines(run / LOG, "step"), read_process(run), _saved(run)
    last = log[-1] if log else {}
    log_age = max(0.0, now - (last["time"] if "time" in last else (run / LOG).stat().st_mtime)) if last else None
    rate, batch = last.get("samples_per_second"), config["data"]["global_batch"]
    usual = config["run"]["log_every"] * batch / rate if rate else 0.0
    began = process.began if process else (run / CONFIG).stat().st_mtime
    silence = min(now - began, now - began if log_age is None else log_age)
    state, because = _state(process, silence, usual)
    step, steps = max(last.get("step", 0), saved.step if saved else 0), config["run"]["steps"]
    if process is None and saved and saved.step >= steps:
        state, because = "finished", f"the checkpoint of step {saved.step} is the last"
    return Status(
        run=str(run),
        state=state,
        because=because,
        step=step,
        steps=steps,
        samples=step * batch,
        losses={name: value for name, value in last.items() if name.split("/")[0] == "loss"},
        lr=last.get("lr"),
        samples_per_second=rate,
        eta=max(0.0, (steps - step) * batch / rate - (log_age or 0)) if rate and state == "going" else None,
        log_age=log_age,
        checkpoint=saved,
        quarantined=len(read_lines(run / LEDGER)),
        damaged=_damaged(run),
    )


def lines(status: Status) -> list[str]:
    """The same for people."""
    told = [
        f"{status.run}: {status.state} ({status.because})",
        f"step {status.step} of {status.steps}, {status.samples:,} samples seen",
    ]
    if status.log_age is not None:
        losses = "  ".join(f"{name.removeprefix('loss/')} {value:.3f}" for name, value in status.losses.items())
        speed = f"{status.samples_per_second:,.1f} samples/s" if status.samples_per_second else "speed unknown"
        eta = "" if status.eta is None else f", ETA {clock(status.eta)}"
        told.append(f"last logged {clock(status.log_age)} ago: {losses}  lr {status.lr or 0:.2e}, {speed}{eta}")
    else:
        told.append("nothing logged yet")
    saved = status.checkpoint
    told.append(f"newest checkpoint: {saved.path}, {clock(saved.age)} old" if saved else "no checkpoint yet")
    told.append(f"{status.quarantined} batches quarantined, {status.damaged} damaged samples left out")
    return told


def _config(run: Path) -> dict[str, Any]:
    """The configuration as plain values: settings that newer software refuses do not matter here."""
    try:
        config = yaml.safe_load((run / CONFIG).read_text())
        if (run / CHECKPOINTS).is_dir() and {"steps", "log_every"} <= config["run"].keys() and "data" in config:
            return config
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError):
        pass
    raise UserError(f"`run` (={run}) must be a run folder, with the {CONFIG} of a run and {CHECKPOINTS}/ in it")


def _state(process: Process | None, age: float, usual: float) -> tuple[State, str]:
    """The state, and how it is known. `age` of the last sign of life and `usual` time between two are in seconds."""
    longest = max(SHORTEST_SILENCE, PATIENCE * usual)
    sign = f"the last sign of life is {clock(age)} old"
    if process is None:
        return ("going" if age <= longest else "silent"), f"{sign}; the folder does not say who runs it"
    who = f"process {process.pid} on {process.host}"
    if process.ending:
        return process.ending, process.reason or f"{who} said so"
    if process.alive is None:
        return ("going" if age <= longest else "silent"), f"{sign}; {who} cannot be seen from here"
    if not process.alive:
        return "dead", f"{who} is gone and did not say why"
    return "going", f"{who} is there" if age <= longest else f"{who} is there, but {sign}"


def _saved(run: Path) -> Saved | None:
    newest = newest_checkpoint(run)
    try:
        age = time.time() - newest.stat().st_mtime if newest else 0.0
    except FileNotFoundError:  # a run that starts over has just deleted it
        return None
    return Saved(str(newest), int(newest.name.removeprefix("step-")), max(0.0, age)) if newest else None


def _damaged(run: Path) -> int:
    entries = (entry for file in (run / DAMAGE).glob("rank-*.jsonl") for entry in read_lines(file, "source", "index"))
    return len({(entry["source"], entry["index"]) for entry in entries})
