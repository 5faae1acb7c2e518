"""The training loop: load, step, log, save. Pretraining and fine-tuning both run this one."""

import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import torch

from pretrain import distributed
from pretrain.agreement import check_agreement
from pretrain.arrange import arrange
from pretrain.bank import check_frozen, fill_bank
from pretrain.checkpoint import Checkpoint, CheckpointNotWritten, prune, restore, save_checkpoint
from pretrain.config import DataConfig, PretrainConfig, WeightedShards
from pretrain.data.loader import Preparation, check_inputs
from pretrain.data.tokenizer import Tokenizer
from pretrain.engine import Engine, Sick, check_accelerator, start_process_group, world_from_environment
from pretrain.folder import DAMAGE, newest_checkpoint
from pretrain.metrics import reporting
from pretrain.optim import build_optimizer, freeze, learning_rate
from pretrain.process import announced
from pretrain.rollback import SpikeGuard, check_budget, quarantine, read_ledger
from pretrain.run import check_folder, flat, open_folder
from pretrain.stop import Interrupted, listening, spare_worker
from pretrain.task import OBJECTIVES, Task, outline
from pretrain.watchdog import watching
from shards.cache import FileCache
from shards.errors import UserError
from shards.reader import ShardSet
from shards.selection import Selected
from shards.sources.base import Source
from shards.stream import ShardStream


@dataclass(frozen=True)
class Inputs:
    """What a run reads, checked before any process group starts or file is written."""

    sources: list[tuple[Source, float]]
    tokenizer: Tokenizer


def check(config: PretrainConfig, source: Source | None = None, initial: Checkpoint | None = None) -> Inputs:
    """Opens the inputs of a run and refuses what cannot work. Writes nothing.

    Raises:
        UserError: one sentence on the first thing that is wrong.
    """
    world = world_from_environment()
    if config.data.global_batch % world:
        raise UserError(f"`global_batch` (={config.data.global_batch}) must be divisible by `world_size` (={world})")
    if config.data.global_batch // world % config.engine.accumulation:
        raise UserError(
            f"`engine.accumulation` (={config.engine.accumulation}) must divide each rank's part of the global batch "
            f"(={config.data.global_batch // world})"
        )
    if not config.objectives.chosen:
        raise UserError(f"`objectives` names none: give at least one of {', '.join(OBJECTIVES)}")
    if source is None and not config.data.shards:
        raise UserError("`data.shards` is not set: name a folder that `shards build` wrote")
    weighted = _opened(config.data) if source is None else [(source, 1.0)]
    for part, _ in weighted:
        if not len(part):
            raise UserError(f"`source` (={part.name}) must hold at least one pair")
    check_accelerator(config.engine)
    tokenizer = initial.tokenizer if initial else Tokenizer(config.data.tokenizer)
    for part, _ in weighted:
        check_inputs(config, tokenizer, part[0])
    _check_task(config, len(tokenizer), initial)
    check_folder(config, world)
    return Inputs(list(weighted), tokenizer)


def _opened(data: DataConfig) -> list[tuple[Source, float]]:
    parts = [WeightedShards(place=data.shards)] if isinstance(data.shards, str) else data.shards
    cache = FileCache(data.cache, int(data.cache_gigabytes * 1e9)) if data.cache else None
    return [(_selected(ShardSet(part.place, cache), part.selection), part.weight) for part in parts]


def _selected(shards: ShardSet, selection: str | None) -> Source:
    return shards if selection is None else Selected(shards, selection)


def _check_task(config: PretrainConfig, vocabulary: int, initial: Checkpoint | None) -> None:
    """Refuses what the model or the optimizer would, while nothing is allocated yet."""
    task = outline(config.model, config.objectives, vocabulary)
    longest = task.model.text.longest
    if config.data.max_tokens > longest:
        raise UserError(
            f"`data.max_tokens` (={config.data.max_tokens}) must be at most `max_position_embeddings` (={longest}) "
            f"of the text encoder"
        )
    freeze(task, config.optim.freeze)
    check_frozen(task)
    arrange(task, config.engine)
    build_optimizer(task, config.optim)
    known = initial.task.state_dict() if initial else task.state_dict()
    if lost := [f"model.{name}" for name in task.model.state_dict() if f"model.{name}" not in known]:
        raise UserError(f"`ckpt` lacks {len(lost)} weights of the model, the first is {lost[0]}")


def fit(config: PretrainConfig, source: Source | None = None, initial: Checkpoint | None = None) -> Path:
    """Trains as `config` says and returns the last checkpoint.

    Args:
        source: What to train on; None opens `config.data.shards`.
        initial: Weights to start from; heads that it lacks start fresh. Its tokenizer replaces the configured one.

    Raises:
        UserError: before any process group starts or file is written.
        Sick: all ranks together, before the optimizer moves; there was no checkpoint to go back to, or no budget.
        CheckpointNotWritten: the newest checkpoint failed; the one before is whole.
        Interrupted: a signal asked any rank to stop; all have saved.
    """
    inputs = check(config, source, initial)
    device = start_process_group()
    check_agreement(facts(config, inputs))
    distributed.barrier()  # no rank is still looking at the folder when the first one writes into it
    if distributed.rank() == 0:
        open_folder(config)
    distributed.barrier()
    with announced(Path(config.run.out), distributed.rank()):
        torch.manual_seed(config.run.seed)  # the same initial weights on every rank
        task = Task(config.model, config.objectives, len(inputs.tokenizer))
        if initial:
            load_initial(task, initial)
        freeze(task, config.optim.freeze)
        task.to(device)
        fill_bank(task, config, inputs.tokenizer, [source for source, _ in inputs.sources])
        return _loop(config, inputs, Engine(task.train(), config), device)


def facts(config: PretrainConfig, inputs: Inputs) -> dict[str, object]:
    """What must be the same on all ranks."""
    versions = {name: version(name) for name in ("torch", "deepspeed", "transformers", "timm")}
    return versions | flat(config.model_dump()) | {"data": [source.fingerprint() for source, _ in inputs.sources]}


def load_initial(task: Task, initial: Checkpoint) -> None:
    """Copies the model and every head that both have."""
    known = initial.task.state_dict()
    task.load_state_dict({k: v for k, v in known.items() if k in task.state_dict()}, strict=False)
    if initial.task.momentum is None:
        task.start_momentum()


@dataclass
class Life:
    """What a run continues from, and where it is."""

    stream: ShardStream
    spikes: SpikeGuard
    start: int = 0
    saved: Path | None = None


def _loop(config: PretrainConfig, inputs: Inputs, engine: Engine, device: torch.device) -> Path:
    """Trains to the end; goes back from a sick batch, and past it, as often as the budget allows."""
    out = Path(config.run.out)
    while True:
        life = Life(_stream(config, inputs), SpikeGuard(config.run.spike), saved=newest_checkpoint(out))
        torch.manual_seed(config.run.seed + 1 + distributed.rank())  # dropout differs between ranks
        _continue(life, engine, out)
        try:
            return _steps(config, inputs.tokenizer, engine, device, life)
        except Sick as sick:
            check_budget(out, sick, life.saved, config.run.max_rollbacks)
            distributed.barrier()  # all have read the ledger
            if distributed.rank() == 0:
                quarantine(out, life.stream.number, sick)
                print(f"{sick}; going back to {life.saved} and past this batch", file=sys.stderr)
            distributed.barrier()


def _steps(config: PretrainConfig, tokenizer: Tokenizer, engine: Engine, device: torch.device, life: Life) -> Path:
    run = config.run
    with (
        reporting(config, life.start, distributed.rank(), engine.task) as metrics,
        listening() as request,
        watching(run.silence_timeout, distributed.rank(), life.start) as pulse,
    ):
        batches = life.stream.batches(run.steps - life.start)
        for step in range(life.start, run.steps):
            before = time.monotonic()
            batch = next(batches)
            waited = time.monotonic() - before
            lr = learning_rate(step, run.steps, config.optim)
            engine.task.begin(run.seed, step)
            stepped = engine.step(batch.to(device), lr, stop=request.asked, limit=life.spikes.limit)
            life.spikes.add(stepped.losses["loss"])
            done, last = step + 1, step + 1 == run.steps
            metrics.add(stepped.losses, waited)
            if done % run.log_every == 0 or last or stepped.stop:
                metrics.report(done, lr)
            if done % run.save_every == 0 or last or stepped.stop:
                _save(config, done, engine, tokenizer, life, must=last or stepped.stop)
            pulse.beat(done)
            if stepped.stop and not last:
                _leave(done, run.steps)
    return life.saved or _save(config, life.start, engine, tokenizer, life, must=True)


def _leave(done: int, steps: int) -> NoReturn:
    """Ends a run that was asked to stop and has saved."""
    if distributed.rank() == 0:
        print(f"stopped by a signal after step {done} of {steps}; the run is saved and can go on", file=sys.stderr)
    raise Interrupted


def _stream(config: PretrainConfig, inputs: Inputs) -> ShardStream:
    preparation = Preparation(config, inputs.tokenizer, [source for source, _ in inputs.sources])
    return ShardStream(
        [*inputs.sources],
        config.data.global_batch,
        rank=distributed.rank(),
        world=distributed.world(),
        workers=config.data.workers,
        seed=config.run.seed,
        transform=preparation.transform,
        collate=preparation.collate,
        damage_budget=config.data.damage_budget,
        ledger_file=Path(config.run.out) / DAMAGE / f"rank-{distributed.rank():05d}.jsonl",
        worker_init=spare_worker,
    )


def _continue(life: Life, engine: Engine, out: Path) -> None:
    """Puts everything back as it was after the last checkpoint, but for batches quarantined since."""
    if life.saved:
        state = restore(life.saved, engine)
        life.stream.load_state_dict(state["stream"])
        life.spikes.load_state_dict(state["losses"])
        life.start = state["step"]
    for entry in read_ledger(out):
        life.stream.quarantine(entry["batch"])


def _save(config: PretrainConfig, step: int, engine: Engine, tokenizer: Tokenizer, life: Life, must: bool) -> Path:
    """Makes a checkpoint the newest of `life`. A failure passes where it need not be and the configuration says so."""
    root = Path(config.run.out) / "checkpoints"
    try:
        stream, losses = life.stream.state_dict(), life.spikes.state_dict()
        life.saved = save_checkpoint(root, step, engine, config, tokenizer, stream, losses)
    except CheckpointNotWritten as error:
        if must or config.run.on_save_failure == "stop":
            raise
        if distributed.rank() == 0:
            print(f"step {step}: {error}; training goes on", file=sys.stderr)
    else:
        if distributed.rank() == 0:
            prune(root, config.run.keep_last, config.run.keep_every)
    return life.saved or root
