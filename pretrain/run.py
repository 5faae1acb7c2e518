"""The run folder (`pretrain.folder`): who may write into it."""

import shutil
from pathlib import Path
from typing import Any

from pretrain.checkpoint import MOMENTS, TRAINER, read_state
from pretrain.config import PretrainConfig
from pretrain.folder import CHECKPOINTS, CONFIG, LOG, OWN, newest_checkpoint, read_lines
from pretrain.rollback import read_ledger
from pretrain.saving import forget_partial
from pretrain.settings import dump_config, load_config
from shards.errors import UserError
from shards.storage import write_atomically


def check_folder(config: PretrainConfig, world: int) -> None:
    """Refuses a folder that this run may not use. Writes nothing.

    Raises:
        UserError: no folder named, another run or foreign files in it, or one that this configuration cannot continue.
    """
    out = _folder(config)
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / CONFIG).is_file():
        raise UserError(f"`run.out` (={out}) must be a new or empty folder; it holds files that are not a run's")
    match config.run.resume:
        case "never":
            raise UserError(
                f"`run.out` (={out}) already holds a run; continue it with --resume or delete it with --overwrite"
            )
        case "auto":
            _check_same(load_config(PretrainConfig, out / CONFIG), config, out)
            _check_checkpoint(newest_checkpoint(out), world, config.engine.zero)
            read_lines(out / LOG, "step")  # these two go on
            read_ledger(out)


def open_folder(config: PretrainConfig) -> Path:
    """Makes the folder ready and writes the resolved configuration into it. Only rank 0 calls it."""
    out = _folder(config)
    if config.run.resume == "overwrite":
        _clear(out)
    (out / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    forget_partial(out / CHECKPOINTS)
    write_atomically(out / CONFIG, dump_config(config).encode())
    return out


def _folder(config: PretrainConfig) -> Path:
    if not config.run.out:
        raise UserError("`run.out` is not set: name the folder that the run may write")
    out = Path(config.run.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"`run.out` (={out}) is a file")
    return out


def _check_checkpoint(newest: Path | None, world: int, zero: int) -> None:
    if newest is None:
        return
    state, whole = read_state(newest), (newest / TRAINER / MOMENTS).is_file()
    for name, now, saved in (("world_size", world, state["world"]), ("engine.zero", zero, state["zero"])):
        if now != saved and not whole:
            raise UserError(
                f"`{name}` (={now}) must be that of the checkpoint (={saved}) to continue from {newest}, "
                f"which has no {TRAINER}/{MOMENTS}"
            )


def _check_same(before: PretrainConfig, now: PretrainConfig, out: Path) -> None:
    """A continued run may change its length, its rhythm and how state is spread, nothing that decides the numbers."""
    free: dict[str, Any] = {
        "run": True,
        "data": {"workers", "cache", "cache_gigabytes", "damage_budget"},
        "engine": {"zero"},
    }
    old, new = flat(before.model_dump(exclude=free)), flat(now.model_dump(exclude=free))
    old["run.seed"], new["run.seed"] = before.run.seed, now.run.seed
    if different := [name for name in new if old.get(name) != new[name]]:
        name = different[0]
        raise UserError(
            f"`{name}` (={new[name]}) must be {old.get(name)}, as in the run that {out} holds; "
            f"use another `run.out` or --overwrite"
        )


def flat(values: dict, prefix: str = "") -> dict[str, object]:
    """Nested sections as dotted names."""
    found: dict[str, object] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return found


def _clear(out: Path) -> None:
    for name in OWN:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
