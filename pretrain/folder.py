"""The names inside a run folder, for all who write it and for those who only look: imports nothing heavy.

RUN/config.yaml       the resolved configuration
    log.jsonl         a line of numbers per interval; the same are in tensorboard/
    process.json      who runs it, or how that ended
    quarantine.jsonl  batches that the run passed over
    damage/           samples that each rank left out
    wandb/            what Weights & Biases keeps, where `run.track` names it
    checkpoints/      latest, step-N/ (`pretrain.checkpoint`)
"""

import json
from pathlib import Path
from typing import Any

CONFIG, LOG, PROCESS, LEDGER = "config.yaml", "log.jsonl", "process.json", "quarantine.jsonl"
BOARD, DAMAGE, CHECKPOINTS = "tensorboard", "damage", "checkpoints"
TRACKED = "wandb"
OWN = (CONFIG, LOG, PROCESS, LEDGER, BOARD, DAMAGE, CHECKPOINTS, TRACKED)
LATEST, STATE = "latest", "state.json"
"""The pointer in `CHECKPOINTS`, and the file that each checkpoint has."""


def newest_checkpoint(run: Path) -> Path | None:
    """The checkpoint that a continued run starts from; None for a new run."""
    pointer = run / CHECKPOINTS / LATEST
    return pointer.parent / pointer.read_text().strip() if pointer.is_file() else None


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The entries of a JSONL file, none where there is no file.

    A last line without its end is left out: its writer is not done with it, or was killed.
    """
    if not file.is_file():
        return []
    whole, _, _ = file.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]
