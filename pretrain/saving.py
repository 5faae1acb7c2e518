"""How a run saves: a copy in host memory, which a thread of each rank writes while training goes on.

1. All ranks copy what they hold. This takes collectives, so training waits for it.
2. Each rank writes its own files, rank 0 also those that travel.
3. When all are done, rank 0 adds state.json, renames the folder, moves `latest` and deletes what is not kept.

That all are done, or that one failed, the ranks learn from votes that travel with the losses of each step
(`pretrain.stepped`). No thread waits for another rank, so a rank that cannot write holds up nobody: after half of
`run.silence_timeout` its part has failed.
"""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial as bound
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pretrain import distributed
from pretrain.background import Job
from pretrain.checkpoint import EMA, MOMENTS, TRAINER, WEIGHTS, digests_file, random_file, sha256
from pretrain.config import PretrainConfig
from pretrain.data.tokenizer import FILE as TOKENIZER
from pretrain.data.tokenizer import Tokenizer
from pretrain.engine import Engine
from pretrain.folder import CHECKPOINTS, CONFIG, LATEST, STATE
from pretrain.models.build import self_contained
from pretrain.randomness import random_state
from pretrain.settings import dump_config
from pretrain.stepped import Votes, agreed
from shards.errors import Stopped
from shards.storage import sync_path, write_atomically

PARTIAL = ".partial-"
LAST_SECONDS = 10.0
"""How long a run that fails waits for its own writing to end."""

Digests = dict[str, str]


class CheckpointNotWritten(Stopped):
    """A checkpoint could not be written; the one before is whole."""


@dataclass
class Save:
    """A checkpoint on its way.

    Attributes:
        must: Training does not go on without it.
        committing: All ranks have written their parts.
    """

    final: Path
    partial: Path
    state: dict[str, Any]
    must: bool
    job: Job
    committing: bool = False


class Saver:
    """Makes the checkpoints of a run, one at a time. All ranks call a method together, but for `votes` and `close`.

    Attributes:
        newest: The newest checkpoint that is whole, to begin with the one that the run starts from.
    """

    def __init__(self, config: PretrainConfig, tokenizer: Tokenizer, newest: Path | None = None) -> None:
        self.newest = newest
        self._config, self._tokenizer = config, tokenizer
        self._root = Path(config.run.out) / CHECKPOINTS
        self._seconds = config.run.silence_timeout / 2
        self._save: Save | None = None
        self._hanging: list[Job] = []
        self._begun = 0

    def start(
        self, step: int, engine: Engine, stream: dict[str, Any], losses: Sequence[float] = (), must: bool = False
    ) -> None:
        """Begins to save; the save before comes to its end first.

        Args:
            stream: The place in the data.
            losses: The last ones, against which spikes are measured.
            must: A failure stops the run, whatever `run.on_save_failure` says.

        Raises:
            CheckpointNotWritten: the save before failed, and that stops the run.
        """
        self.finish()
        self._begun += 1  # a thread that hangs may still write into the folder of an earlier try
        final = self._root / f"step-{step:08d}"
        partial = self._root / f"{PARTIAL}{final.name}-{self._begun}"
        first = distributed.rank() == 0
        files = engine.snapshot(partial / TRAINER)
        files[random_file(partial, distributed.rank())] = random_state()
        tensors = {WEIGHTS: engine.weights(first), f"{TRAINER}/{MOMENTS}": engine.moments(first)}
        if engine.ema:
            tensors[EMA] = engine.ema.weights(first)
        state = {"step": step, "world": distributed.world(), "zero": engine.zero, "stream": stream}
        write = bound(self._write, partial, files, tensors if first else {})
        self._save = Save(final, partial, state | {"losses": list(losses)}, must, self._begin(write))

    def votes(self, stop: bool = False) -> Votes:
        """What this rank has to say at its next step."""
        return Votes(stop, *self._save.job.look()) if self._save else Votes(stop)

    def heed(self, votes: Votes) -> None:
        """Takes notice of what any rank said.

        Raises:
            CheckpointNotWritten: on all ranks, as in `start`.
        """
        save = self._save
        if save is None or votes.writing:
            return
        if votes.failed:
            self._save = None
            self._fail(save)
        elif save.committing:
            self.newest, self._save = save.final, None
        else:
            commit = bound(self._commit, save, save.job.result) if distributed.rank() == 0 else bool
            save.committing, save.job = True, self._begin(commit)

    def finish(self) -> None:
        """Waits until nothing is being saved.

        Raises:
            CheckpointNotWritten: on all ranks, as in `start`.
        """
        while self._save:
            self._save.job.wait()
            self.heed(agreed(self.votes()))

    def close(self) -> None:
        """Lets this rank's writing end, but does not wait long, nor for others: one of them may be gone."""
        if self._save:
            self._save.job.wait(LAST_SECONDS)

    def _begin(self, work: Any) -> Job:
        hangs = any(job.alive for job in self._hanging)
        return Job(_refuse if hangs else work, self._seconds)

    def _fail(self, save: Save) -> None:
        """All ranks learn the reason and stop, or go on, alike."""
        reason = distributed.first_of_ranks(_sentence(save.job.failure))
        if save.job.alive:
            self._hanging.append(save.job)
        if distributed.rank() == 0:
            self._begin(bound(shutil.rmtree, save.partial, ignore_errors=True)).wait()
        error = CheckpointNotWritten(f"the checkpoint was not written, older ones are whole: {reason}")
        if save.must or self._config.run.on_save_failure == "stop":
            raise error
        if distributed.rank() == 0:
            print(f"step {save.state['step']}: {error}; training goes on", file=sys.stderr)

    def _write(self, partial: Path, files: dict[Path, Any], tensors: dict[str, dict[str, Tensor]]) -> Digests:
        """This rank's files, and the digests of those that travel."""
        for path, value in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:  # torch given a path would hold the interpreter while it opens it
                torch.save(value, file)
        for name, values in tensors.items():
            if sick := [key for key, value in values.items() if not value.isfinite().all()]:
                raise RuntimeError(f"`{sick[0]}` in {name} is not finite")
            save_file(values, partial / name)
        if tensors:
            portable = self._config.model_copy(update={"model": self_contained(self._config.model)})
            (partial / CONFIG).write_text(dump_config(portable))
            self._tokenizer.save(partial)
        travelling = [name for name in (*tensors, CONFIG, TOKENIZER) if tensors and not name.startswith(TRAINER)]
        staying = [str(path.relative_to(partial)) for path in files] + [name for name in tensors if "/" in name]
        digests = {name: sha256(partial / name) for name in (*travelling, *staying)}
        own = digests_file(partial, distributed.rank())
        own.write_text(json.dumps({name: digests[name] for name in staying}, indent=1))
        for path in (*(partial / name for name in digests), own):
            sync_path(path)
        return {name: digests[name] for name in travelling}

    def _commit(self, save: Save, digests: Digests) -> None:
        for rank in range(distributed.world()):
            if not digests_file(save.partial, rank).is_file():
                raise RuntimeError(f"rank {rank} wrote elsewhere: `run.out` must lie on a disk that all ranks share")
        (save.partial / STATE).write_text(json.dumps(save.state | {"files": digests}, indent=1))
        for path in (save.partial / STATE, save.partial / TRAINER, save.partial):
            sync_path(path)
        if save.final.exists():
            shutil.rmtree(save.final)
        os.rename(save.partial, save.final)
        sync_path(self._root)
        write_atomically(self._root / LATEST, save.final.name.encode())
        prune(self._root, self._config.run.keep_last, self._config.run.keep_every)


def prune(root: Path, keep: int, every: int | None = None) -> None:
    """Deletes checkpoints but the newest `keep` up to `latest` and those of steps that `every` divides.

    What interrupted saves left goes too. What cannot be deleted now is tried again after the next save.
    """
    latest = (root / LATEST).read_text().strip()
    whole = sorted(root.glob("step-*"))
    kept = [checkpoint for checkpoint in whole if checkpoint.name <= latest][-keep:]
    forget_partial(root)
    for checkpoint in whole:
        marked = every is not None and int(checkpoint.name.removeprefix("step-")) % every == 0
        if checkpoint not in kept and (not marked or checkpoint.name > latest):
            shutil.rmtree(checkpoint, ignore_errors=True)


def forget_partial(root: Path) -> None:
    """Deletes what interrupted saves left; nothing may be being saved."""
    for partial in root.glob(f"{PARTIAL}*"):
        shutil.rmtree(partial, ignore_errors=True)


def _refuse() -> None:
    raise OSError("an earlier save still hangs")


def _sentence(failure: Exception | None) -> str | None:
    """The first line of what the disk said. torch's writer covers that with an error of its own."""
    if failure is None:
        return None
    cause: BaseException | None = failure
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    return f"rank {distributed.rank()}: {str(cause or failure).splitlines()[0]}"
