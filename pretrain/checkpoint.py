"""Checkpoints: directories that appear whole or not at all, and that open elsewhere.

    RUN/checkpoints/latest                 the name of the newest checkpoint, moved last
    RUN/checkpoints/step-00001000/
        model.safetensors                  parameters and buffers of the task
        ema.safetensors                    the same with averaged parameters, if `optim.ema` is set
        config.yaml  tokenizer.json        what is needed to build it again
        state.json                         step, stream position, sha256 of each file above
        trainer/                           optimizer state and random generators, for resuming only
            moments.safetensors            the optimizer's moments, whole: what another world size resumes from
            digests-RANK.json              sha256 of each file here, by the rank that wrote it

`pretrain.saving` writes one under another name, syncs it, renames it and then replaces `latest`.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pretrain import distributed
from pretrain.config import PretrainConfig
from pretrain.data.tokenizer import FILE as TOKENIZER
from pretrain.data.tokenizer import Tokenizer
from pretrain.engine import Engine
from pretrain.folder import BEST, CONFIG, LATEST, STATE
from pretrain.hub import fetch, hub_place
from pretrain.randomness import restore_random_state
from pretrain.settings import load_config
from pretrain.task import Task
from shards.errors import UserError

TRAINER, MOMENTS = "trainer", "moments.safetensors"
WEIGHTS, EMA = "model.safetensors", "ema.safetensors"
STATE_KEYS = ("step", "world", "stream", "files")


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
        return {name: state[name] for name in STATE_KEYS} | {name: state.get(name) for name in ("losses", "zero")}
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
        if not (path / name).is_file() or sha256(path / name) != expected:
            raise UserError(f"`ckpt` (={path}) is damaged: {name} does not have the sha256 that {STATE} names")
    config = load_config(PretrainConfig, path / CONFIG)
    tokenizer = Tokenizer(path)
    task = Task(config.model, config.objectives, len(tokenizer))
    try:
        task.load_state_dict(load_file(path / weights))
    except (RuntimeError, SafetensorError) as error:
        raise UserError(f"`ckpt` (={path}) does not fit its own configuration: {error}") from None
    return Checkpoint(path, config, task.eval(), tokenizer, state, weights)


def restore(checkpoint: Path, engine: Engine) -> dict[str, Any]:
    """Puts the engine and this rank's generators back; returns the contents of state.json. Every rank calls it.

    At another world size or ZeRO stage the parts of the optimizer are made anew from whole ones; at another world size
    the generators start fresh.

    Raises:
        UserError: on all ranks, if a file is missing or damaged.
    """
    state, rank = read_state(checkpoint), distributed.rank()
    if reason := distributed.first_of_ranks(_damage(checkpoint, state["world"])):
        raise UserError(f"`ckpt` (={checkpoint}) is damaged: {reason}")
    if engine.ema:
        engine.ema.load(load_file(checkpoint / EMA))
    same_world = state["world"] == distributed.world()
    if same_world and state["zero"] == engine.zero:
        engine.load(checkpoint / TRAINER)
    else:
        engine.load_parts(load_file(checkpoint / WEIGHTS), load_file(checkpoint / TRAINER / MOMENTS), state["step"])
    if same_world:
        restore_random_state(torch.load(random_file(checkpoint, rank), weights_only=True))
    return state


def _damage(checkpoint: Path, world: int) -> str | None:
    """What is wrong with files for resuming, of which each rank looks at its part."""
    for rank in range(distributed.rank(), world, distributed.world()):
        try:
            for name, expected in json.loads(digests_file(checkpoint, rank).read_text()).items():
                if sha256(checkpoint / name) != expected:
                    return f"{name} does not have the sha256 that {digests_file(Path(), rank)} names"
        except (OSError, ValueError, AttributeError) as error:
            return str(error)
    return None


def digests_file(checkpoint: Path, rank: int) -> Path:
    """Names what a rank wrote for resuming, with the sha256 of each file."""
    return checkpoint / TRAINER / f"digests-{rank}.json"


def random_file(checkpoint: Path, rank: int) -> Path:
    """Where a rank keeps its generators."""
    return checkpoint / TRAINER / f"rng-{rank}.pt"


def sha256(path: Path) -> str:
    """The hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
