"""The names inside a run folder, for all who write it and for those who only look: imports nothing heavy.

RUN/config.yaml       the resolved configuration
    log.jsonl         a line of numbers per interval; the same are in tensorboard/
    process.json      who runs it, or how that ended
    quarantine.jsonl  batches that the run passed over
    damage/           samples that each rank left out
    errors/           tracebacks of ranks that lost their peers
    wandb/            what Weights & Biases keeps, where `run.track` names it
    checkpoints/      latest, step-N/ (`pretrain.checkpoint`)
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shards.errors import UserError

CONFIG, LOG, PROCESS, LEDGER = "config.yaml", "log.jsonl", "process.json", "quarantine.jsonl"
BOARD, DAMAGE, ERRORS, CHECKPOINTS = "tensorboard", "damage", "errors", "checkpoints"
BEST, VALIDATION, TRACKED = "best", "validation.jsonl", "wandb"
OWN = (CONFIG, LOG, PROCESS, LEDGER, BOARD, DAMAGE, ERRORS, CHECKPOINTS, BEST, VALIDATION, TRACKED)
LATEST, STATE = "latest", "state.json"
"""The pointer in `CHECKPOINTS`, and the file that each checkpoint has."""


def newest_checkpoint(run: Path) -> Path | None:
    """The checkpoint that a continued run starts from; None for a new run.

    Raises:
        UserError: the pointer to it is damaged.
    """
    pointer = run / CHECKPOINTS / LATEST
    if not pointer.is_file():
        return None
    name = pointer.read_bytes().decode(errors="replace").strip()
    if not re.fullmatch(r"step-\d{8,}", name):
        raise UserError(f"`run` (={run}) is damaged: {CHECKPOINTS}/{LATEST} must hold the name of a checkpoint")
    return pointer.parent / name


def read_lines(file: Path, *keys: str) -> list[dict[str, Any]]:
    """The entries of a JSONL file, which have these keys; none where there is no file.

    A last line without its end is left out: its writer is not done with it, or was killed.

    Raises:
        UserError: it is damaged.
    """
    if not file.is_file():
        return []
    whole, _, _ = file.read_bytes().rpartition(b"\n")
    return [_entry(file, number, line, keys) for number, line in enumerate(whole.splitlines(), start=1)]


def _entry(file: Path, number: int, line: bytes, keys: Sequence[str]) -> dict[str, Any]:
    try:
        entry = json.loads(line)
        if isinstance(entry, dict) and not (lacking := [key for key in keys if key not in entry]):
            return entry
        reason = f"lacks `{lacking[0]}`" if isinstance(entry, dict) else "is no object"
    except ValueError:
        reason = "is not JSON"
    raise UserError(f"`run` (={file.parent}) is damaged: line {number} of {file.name} {reason}; delete it to go on")
