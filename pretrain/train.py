"""The training loop: load, step, log, save. Pretraining and fine-tuning both run this one."""

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import torch

from pretrain import distributed
from pretrain.agreement import check_agreement
from pretrain.arrange import arrange
from pretrain.bank import check_frozen, fill_bank
from pretrain.checkpoint import Checkpoint, restore
from pretrain.config import PretrainConfig, RunConfig
from pretrain.data.loader import Preparation, check_inputs
from pretrain.data.parts import open_parts
from pretrain.data.tokenizer import Tokenizer
from pretrain.engine import Engine, check_accelerator, start_process_group
from pretrain.fetching import fetch_weights
from pretrain.folder import DAMAGE, newest_checkpoint
from pretrain.machine import rank_from_environment, world_from_environment
from pretrain.metrics import data_counts, reporting
from pretrain.models.resize import at_size
from pretrain.optim import build_optimizer, freeze, learning_rate
from pretrain.peers import peers_needed
from pretrain.process import announced
from pretrain.rehearsal import rehearse
from pretrain.rollback import SpikeGuard, check_budget, quarantine, read_ledger
from pretrain.run import check_folder, flat, open_folder
from pretrain.saving import Saver
from pretrain.stepped import Sick
from pretrain.stop import Interrupted, listening, spare_worker
from pretrain.task import OBJECTIVES, Task, outline
from pretrain.trackers import check_trackers
from pretrain.watchdog import Pulse, watching
from shards.errors import UserError
from shards.sources.base import Source
from shards.stream import ShardStream

Judge = Callable[[Path], bool]
"""Looks at a checkpoint that was just written, on all ranks alike: True ends the run there."""


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
    weighted = open_parts(config.data) if source is None else [(source, 1.0)]
    for part, _ in weighted:
        if not len(part):
            raise UserError(f"`source` (={part.name}) must hold at least one pair")
    check_accelerator(config.engine)
    check_trackers(config.run.track)
    tokenizer = initial.tokenizer if initial else Tokenizer(config.data.tokenizer)
    for part, _ in weighted:
        check_inputs(config, tokenizer, part[0])
    _check_task(config, len(tokenizer), initial)
    check_folder(config, world)
    return Inputs(list(weighted), tokenizer)


def _check_task(config: PretrainConfig, vocabulary: int, initial: Checkpoint | None) -> None:
    """Refuses what the model or the optimizer would, while nothing is allocated yet."""
    task = outline(config.model, config.objectives, vocabulary)
    longest = task.model.text.longest
    if config.data.max_tokens > longest:
        raise UserError(
            f"`data.max_tokens` (={config.data.max_tokens}) must be at most `max_position_embeddings` (={longest}) "
            f"of the text encoder"
        )
    if config.data.image_shape and not task.model.vision.any_shape:
        raise UserError(
            f"`data.image_shape` needs a `model.vision` that takes any shape, and {config.model.vision.name} is built "
            f"for `model.image_size` (={config.model.image_size})"
        )
    freeze(task, config.optim.freeze)
    check_frozen(task)
    arrange(task, config.engine)
    build_optimizer(task, config.optim)
    known = initial.task.state_dict() if initial else task.state_dict()
    if lost := [f"model.{name}" for name in task.model.state_dict() if f"model.{name}" not in known]:
        raise UserError(f"`ckpt` lacks {len(lost)} weights of the model, the first is {lost[0]}")


def fit(
    config: PretrainConfig, source: Source | None = None, initial: Checkpoint | None = None, judge: Judge | None = None
) -> Path:
    """Trains as `config` says and returns the last checkpoint.

    Args:
        source: What to train on; None opens `config.data.shards`.
        initial: Weights to start from; heads that it lacks start fresh. Its tokenizer replaces the configured one.
        judge: Sees each checkpoint and may end the run.

    Raises:
        UserError: before any process group starts or file is written.
        Stopped: a hub that has the initial weights does not answer, as early.
        Sick: all ranks together, before the optimizer moves; there was no checkpoint to go back to, or no budget.
        CheckpointNotWritten: the newest checkpoint failed; the one before is whole.
        Interrupted: a signal asked any rank to stop; all have saved.
        PeerLost: another rank is gone.
    """
    config = fetch_weights(config, tokenizer=initial is None)
    inputs = check(config, source, initial)
    out, rank = Path(config.run.out), rank_from_environment()
    with watching(config.run.silence_timeout, rank) as pulse, peers_needed(out, rank, pulse):
        device = start_process_group()
        check_agreement(facts(config, inputs))
        engine = _ready(config, inputs, initial, device)
        distributed.barrier()  # no rank is still looking at the folder when the first one writes into it
        if rank == 0:
            open_folder(config)
        distributed.barrier()
        with announced(out, rank), peers_needed(out, rank, pulse):
            return _loop(config, inputs, engine, device, pulse, judge)


def _ready(config: PretrainConfig, inputs: Inputs, initial: Checkpoint | None, device: torch.device) -> Engine:
    """The engine with its first weights, after a rehearsal."""
    torch.manual_seed(config.run.seed)  # the same initial weights on every rank
    task = Task(config.model, config.objectives, len(inputs.tokenizer))
    if initial:
        load_initial(task, initial)
    freeze(task, config.optim.freeze)
    fill_bank(task.to(device), config, inputs.tokenizer, [source for source, _ in inputs.sources])
    engine = Engine(task.train(), config)
    if config.run.rehearse:
        batch = next(open_stream(config, inputs, workers=0).batches(1))
        rehearse(engine, batch.to(device), config, distributed.world())
    return engine


def facts(config: PretrainConfig, inputs: Inputs) -> dict[str, object]:
    """What must be the same on all ranks."""
    versions = {name: version(name) for name in ("torch", "deepspeed", "transformers", "timm")}
    return versions | flat(config.model_dump()) | {"data": [source.fingerprint() for source, _ in inputs.sources]}


def load_initial(task: Task, initial: Checkpoint) -> None:
    """Copies the model, stretched to another image size if need be, and every head that both have."""
    known = initial.task.state_dict()
    towers = {"model.": task.model} | ({"momentum.model.": task.momentum.model} if task.momentum else {})
    for place, model in towers.items():
        part = {name.removeprefix(place): value for name, value in known.items() if name.startswith(place)}
        if part:
            known |= {place + name: value for name, value in at_size(part, model).items()}
    task.load_state_dict({k: v for k, v in known.items() if k in task.state_dict()}, strict=False)
    if initial.task.momentum is None:
        task.start_momentum()


@dataclass
class Life:
    """A stretch of a run from a checkpoint, or from its beginning."""

    stream: ShardStream
    spikes: SpikeGuard
    saver: Saver
    judge: Judge | None = None
    start: int = 0


def _loop(
    config: PretrainConfig,
    inputs: Inputs,
    engine: Engine,
    device: torch.device,
    pulse: Pulse,
    judge: Judge | None,
) -> Path:
    """Trains to the end; goes back from a sick batch, and past it, as often as the budget allows."""
    out = Path(config.run.out)
    ledger = out / DAMAGE / f"rank-{distributed.rank():05d}.jsonl"
    saver = Saver(config, inputs.tokenizer, newest_checkpoint(out))
    with contextlib.closing(saver):
        while True:
            stream = open_stream(config, inputs, config.data.workers, ledger)
            life = Life(stream, SpikeGuard(config.run.spike), saver, judge)
            torch.manual_seed(config.run.seed + 1 + distributed.rank())  # dropout differs between ranks
            _continue(life, engine, out)
            pulse.beat(life.start)
            try:
                return _steps(config, engine, device, life, pulse)
            except Sick as sick:
                saver.finish()
                check_budget(out, sick, saver.newest, config.run.max_rollbacks)
                distributed.barrier()  # all have read the ledger
                if distributed.rank() == 0:
                    quarantine(out, life.stream.number, sick)
                    print(f"{sick}; going back to {saver.newest} and past this batch", file=sys.stderr)
                distributed.barrier()


def _steps(config: PretrainConfig, engine: Engine, device: torch.device, life: Life, pulse: Pulse) -> Path:
    run, saver = config.run, life.saver
    with (
        reporting(config, life.start, distributed.rank(), engine.task, engine.flops) as metrics,
        listening() as request,
    ):
        batches = life.stream.batches(run.steps - life.start)
        judged = saver.newest
        for step in range(life.start, run.steps):
            asked = time.monotonic()
            batch = next(batches)
            waited = time.monotonic() - asked
            lr = learning_rate(step, run.steps, config.optim)
            engine.task.begin(run.seed, step)
            stepped = engine.step(batch.to(device), lr, votes=saver.votes(request.asked), limit=life.spikes.limit)
            saver.heed(stepped.votes)
            life.spikes.add(stepped.losses["loss"])
            done, stop = step + 1, stepped.votes.stop
            last = done == run.steps
            metrics.add(stepped.losses, waited)
            if done % run.log_every == 0 or last or stop:
                metrics.report(done, lr, data_counts(life.stream.counts))
            if done % run.save_every == 0 or last or stop:
                _save(run, done, engine, life, must=last or stop)
            pulse.beat(done)
            if stop and not last:
                _leave(done, run.steps)
            if life.judge and saver.newest and saver.newest != judged:
                judged = saver.newest
                pulse.rest()
                if life.judge(judged):
                    break
                pulse.beat(done)
    if saver.newest is None:
        _save(run, life.start, engine, life, must=True)
    assert saver.newest is not None
    return saver.newest


def _save(run: RunConfig, step: int, engine: Engine, life: Life, must: bool) -> None:
    """Begins a checkpoint, and waits for one that the run ends with, or that is judged."""
    life.saver.start(step, engine, life.stream.state_dict(), life.spikes.state_dict(), must)
    if must or life.judge or not run.async_save:
        life.saver.finish()


def _leave(done: int, steps: int) -> NoReturn:
    """Ends a run that was asked to stop and has saved."""
    if distributed.rank() == 0:
        print(f"stopped by a signal after step {done} of {steps}; the run is saved and can go on", file=sys.stderr)
    raise Interrupted


def open_stream(config: PretrainConfig, inputs: Inputs, workers: int, ledger: Path | None = None) -> ShardStream:
    """This rank's batches from the first on; damaged samples are entered in the file `ledger`."""
    preparation = Preparation(config, inputs.tokenizer, [source for source, _ in inputs.sources])
    return ShardStream(
        [*inputs.sources],
        config.data.global_batch,
        rank=distributed.rank(),
        world=distributed.world(),
        workers=workers,
        seed=config.run.seed,
        transform=preparation.transform,
        collate=preparation.collate,
        damage_budget=config.data.damage_budget,
        ledger_file=ledger,
        worker_init=spare_worker,
    )


def _continue(life: Life, engine: Engine, out: Path) -> None:
    """Puts everything back as it was after the last checkpoint, but for batches quarantined since."""
    if saved := life.saver.newest:
        state = restore(saved, engine)
        life.stream.load_state_dict(state["stream"])
        life.spikes.load_state_dict(state["losses"])
        life.start = state["step"]
    for entry in read_ledger(out):
        life.stream.quarantine(entry["batch"])
