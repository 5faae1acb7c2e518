"""What tests do with run folders."""

import json
import shutil
from pathlib import Path
from typing import Any


def logged(run: Path, *, timing: bool = False) -> list[dict[str, Any]]:
    """The lines of log.jsonl, without the figures that depend on the clock or on when the process began."""
    clock = ("time", "samples_per_second", "data_wait", "memory", "eta", "tflops")
    left_out = () if timing else (*clock, "read", "yielded", "substituted", "filtered")
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in left_out} for line in lines]


def weights(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}" / "model.safetensors"


def interrupted(run: Path, step: int, copy: Path) -> Path:
    """A copy of a run folder as it was after the checkpoint of `step`; the log already has the steps after it."""
    shutil.copytree(run, copy)
    for checkpoint in (copy / "checkpoints").glob("step-*"):
        if checkpoint.name > f"step-{step:08d}":
            shutil.rmtree(checkpoint)
    (copy / "checkpoints" / "latest").write_text(f"step-{step:08d}")
    return copy


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []
