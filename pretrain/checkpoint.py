"""Checkpoints: directories that appear whole or not at all, and that open elsewhere.

    RUN/checkpoints/latest                 the name of the newest checkpoint, moved last
    RUN/checkpoints/step-00001000/
        model.safetensors                  parameters and buffers of the task
        ema.safetensors                    the same with averaged parameters, if `optim.ema` is set
        config.yaml  tokenizer.json        what is needed to build it again
        state.json                         step, stream position, sha256 of each file above
        trainer/                           optimizer state and random generators, for resuming only
            moments.safetensors            the optimizer's moments, whole: what another world size resumes from

A checkpoint is written to `.partial-step-N`, synced, renamed; then `latest` is replaced.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pretrain import distributed
from pretrain.config import PretrainConfig
from pretrain.data.tokenizer import FILE as TOKENIZER
from pretrain.data.tokenizer import Tokenizer
from pretrain.engine import Engine
from pretrain.folder import BEST, CONFIG, LATEST, STATE
from pretrain.hub import fetch, hub_place
from pretrain.models.build import self_contained
from pretrain.settings import dump_config, load_config
from pretrain.task import Task
from shards.errors import Stopped, UserError
from shards.storage import sync_path, write_atomically

MOMENTS = "moments.safetensors"
WEIGHTS, EMA = "model.safetensors", "ema.safetensors"
STATE_KEYS = ("step", "world", "stream", "files")


class CheckpointNotWritten(Stopped):
    """The newest checkpoint could not be written; the one before is whole."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        state: The contents of state.json.
        weights: The name of the file that the weights came from.
    """

    path: Path
    config: PretrainConfig
    task: Task
    tokenizer: Tokenizer
    state: dict[str, Any]
    weights: str = WEIGHTS

    @property
    def digest(self) -> str:
        """Hex sha256 of the weights file."""
        return self.state["files"][self.weights]

    @property
    def step(self) -> int:
        return self.state["step"]


def find_checkpoint(place: str | Path) -> Path:
    """The checkpoint folder that `place` means: itself, the best of a run folder that was validated, else its latest,
    or what a hub has (`pretrain.hub`).

    Raises:
        UserError: no whole checkpoint lies there.
        Stopped: a hub that does not answer.
    """
    hub = hub_place(place)
    path = fetch(hub, [WEIGHTS, CONFIG, TOKENIZER, STATE]) if hub else Path(place)
    for folder in (path, path / BEST):
        if (folder / STATE).is_file():
            return folder
    pointer = path / "checkpoints" / LATEST
    if pointer.is_file() and (found := pointer.parent / pointer.read_text().strip() / STATE).is_file():
        return found.parent
    raise UserError(
        f"`ckpt` (={place}) must be a checkpoint folder or a run folder with checkpoints/{LATEST}, or hf:USER/NAME"
    )


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The contents of state.json.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        state = json.loads((checkpoint / STATE).read_text())
        return {name: state[name] for name in STATE_KEYS} | {"losses": state.get("losses", [])}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"`ckpt` (={checkpoint}) is damaged: {STATE} cannot be read: {error}") from None


def load_checkpoint(place: str | Path) -> Checkpoint:
    """Reads a checkpoint for use: weights checked against their digest, in evaluation mode, on the CPU.

    Args:
        place: As in `find_checkpoint`; `ema.safetensors` behind it asks for the averaged weights.

    Raises:
        UserError: nothing there, a file that is damaged, or weights that do not fit the configuration.
    """
    weights = EMA if Path(place).name == EMA else WEIGHTS
    path = find_checkpoint(Path(place).parent if weights == EMA else place)
    state = read_state(path)
    if weights not in state["files"]:
        raise UserError(f"`ckpt` (={path}) has no averaged weights: its run had no `optim.ema`")
    for name, expected in state["files"].items():
        if not (path / name).is_file() or _sha256(path / name) != expected:
            raise UserError(f"`ckpt` (={path}) is damaged: {name} does not have the sha256 that {STATE} names")
    config = load_config(PretrainConfig, path / CONFIG)
    tokenizer = Tokenizer(path)
    task = Task(config.model, config.objectives, len(tokenizer))
    try:
        task.load_state_dict(load_file(path / weights))
    except (RuntimeError, SafetensorError) as error:
        raise UserError(f"`ckpt` (={path}) does not fit its own configuration: {error}") from None
    return Checkpoint(path, config, task.eval(), tokenizer, state, weights)


def save_checkpoint(
    root: Path,
    step: int,
    engine: Engine,
    config: PretrainConfig,
    tokenizer: Tokenizer,
    stream: dict[str, Any],
    losses: Sequence[float] = (),
) -> Path:
    """Writes `root`/step-N whole or not at all; every rank calls it with the same arguments.

    Args:
        losses: The last ones, against which spikes are measured.

    Raises:
        CheckpointNotWritten: on all ranks, when any could not write (a full disk) or a weight is not finite; older
            checkpoints are untouched.
    """
    final, partial = root / f"step-{step:08d}", root / f".partial-step-{step:08d}"
    portable = config.model_copy(update={"model": self_contained(config.model)})
    state = {"step": step, "world": distributed.world(), "stream": stream, "losses": list(losses)}
    weights, moments = {WEIGHTS: engine.weights()}, engine.moments()
    if engine.ema:
        weights[EMA] = engine.ema.weights()
    try:
        _together(lambda: _start(partial), distributed.rank() == 0)
        _together(lambda: _save_trainer(partial / "trainer", engine, moments))
        _together(lambda: _finish(partial, final, weights, portable, tokenizer, state), distributed.rank() == 0)
    except CheckpointNotWritten:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return final


def restore(checkpoint: Path, engine: Engine) -> dict[str, Any]:
    """Puts the engine and this rank's generator back; returns the contents of state.json. Every rank calls it.

    At another world size the parts of the optimizer are made anew from whole ones, and the generators start fresh.
    """
    state = read_state(checkpoint)
    if engine.ema:
        engine.ema.load(load_file(checkpoint / EMA))
    if state["world"] != distributed.world():
        engine.load_parts(load_file(checkpoint / WEIGHTS), load_file(checkpoint / "trainer" / MOMENTS), state["step"])
        return state
    engine.load(checkpoint / "trainer")
    torch.set_rng_state(torch.load(checkpoint / "trainer" / f"rng-{distributed.rank()}.pt", weights_only=True))
    return state


def prune(root: Path, keep: int, every: int | None = None) -> None:
    """Deletes checkpoints but the newest `keep` up to `latest` and those of steps that `every` divides.

    What interrupted saves left goes too.
    """
    latest = (root / LATEST).read_text().strip()
    whole = sorted(root.glob("step-*"))
    kept = [checkpoint for checkpoint in whole if checkpoint.name <= latest][-keep:]
    for partial in root.glob(".partial-step-*"):
        shutil.rmtree(partial)
    for checkpoint in whole:
        marked = every is not None and int(checkpoint.name.removeprefix("step-")) % every == 0
        if checkpoint not in kept and (not marked or checkpoint.name > latest):
            shutil.rmtree(checkpoint)


def _together(write: Callable[[], None], here: bool = True) -> None:
    """Runs a writing step where `here` and fails on all ranks alike, so that none waits for one that gave up."""
    failure: Exception | None = None
    if here:
        try:
            write()
        except (OSError, UserError, SafetensorError, RuntimeError) as error:  # torch's writer raises RuntimeError
            failure = error
    if distributed.any_rank(failure is not None):
        reason = str(failure or "another rank failed").splitlines()[0]
        raise CheckpointNotWritten(f"the checkpoint was not written, older ones are whole: {reason}")


def _start(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "trainer").mkdir(parents=True)


def _save_trainer(folder: Path, engine: Engine, moments: dict[str, torch.Tensor]) -> None:
    engine.save(folder)
    if distributed.rank() == 0:
        save_file(moments, folder / MOMENTS)
    torch.save(torch.get_rng_state(), folder / f"rng-{distributed.rank()}.pt")


def _finish(
    partial: Path,
    final: Path,
    weights: dict[str, dict[str, torch.Tensor]],
    config: PretrainConfig,
    tokenizer: Tokenizer,
    state: dict[str, Any],
) -> None:
    for file, tensors in weights.items():
        if sick := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
            raise RuntimeError(f"the weight `{sick[0]}` is not finite")
        save_file(tensors, partial / file)
    (partial / CONFIG).write_text(dump_config(config))
    tokenizer.save(partial)
    files = {name: _sha256(partial / name) for name in (*weights, CONFIG, TOKENIZER)}
    (partial / STATE).write_text(json.dumps(state | {"files": files}, indent=1))
    for path in partial.rglob("*"):
        sync_path(path)
    if final.exists():
        shutil.rmtree(final)
    os.rename(partial, final)
    sync_path(final.parent)
    write_atomically(final.parent / LATEST, final.name.encode())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
