"""The plan of a run: memory, speed, and what the whole schedule takes."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pretrain.config import PretrainConfig
from pretrain.planning.memory import Memory, memory
from pretrain.planning.sources import Corpus
from pretrain.planning.speed import BUS, Cluster, checkpoint_bytes, speed
from pretrain.planning.step import entries, imagine
from pretrain.settings import merge, parse_config
from shards.errors import UserError

DAY = 86400.0
SPARING: tuple[dict[str, Any], ...] = (
    {"precision": "bf16"},
    {"zero": 1},
    {"activation_checkpointing": True},
    {"accumulation": 2},
    {"accumulation": 4},
    {"accumulation": 8},
    {"accumulation": 16},
    {"zero": 3},
    {"offload": "optimizer"},
)
"""Settings of `engine` that save memory, those that cost the least first; each is tried on top of those before it."""


@dataclass(frozen=True)
class Plan:
    """What `pretrain plan` tells. Times in seconds, sizes in bytes, of one rank where nothing else is said.

    Attributes:
        mfu: Model FLOPs of the step as a share of the peak.
        shards_per_rank: None where the shards are not there to be counted.
        products, messages, optimizer, data: Seconds of a step; they may overlap (`pretrain.planning.speed`).
        reading: Bytes/s that all ranks read.
        checkpoint: Seconds that writing one takes, and `checkpoint_bytes` its size; `stalled` seconds that training
            waits for each.
    """

    world: int
    pairs: int
    memory: Memory
    available: float
    step: float
    products: float
    messages: float
    optimizer: float
    data: float
    samples_per_second: float
    mfu: float
    sent: dict[str, float]
    steps: int
    days: float
    gpu_hours: float
    reading: float
    checkpoint: float
    checkpoint_bytes: int
    stalled: float
    shards_per_rank: float | None

    @property
    def fits(self) -> bool:
        return self.memory.peak <= self.available

    def as_json(self) -> dict[str, Any]:
        told = asdict(self)
        told["memory"] |= {"peak": self.memory.peak, "moment": self.memory.moment}
        return told | {"fits": self.fits}


def make_plan(config: PretrainConfig, corpus: Corpus, cluster: Cluster) -> Plan:
    """Plans a run; steps that train different objectives count by their shares, memory is that of the largest.

    Raises:
        UserError: a batch that the ranks cannot share, or what a run would refuse of the model.
    """
    check_split(config, cluster.world)
    shares = entries(config)
    imagined = {entry: imagine(config, corpus, cluster.world, entry=entry) for entry in shares}
    speeds = {entry: speed(config, step, cluster) for entry, step in imagined.items()}
    largest = max((memory(config, step, cluster.world) for step in imagined.values()), key=lambda found: found.peak)

    def mean(value: Callable[[str], float]) -> float:
        return sum(share * value(entry) for entry, share in shares.items())

    seconds, batch, run = mean(lambda entry: speeds[entry].step), config.data.global_batch, config.run
    one = next(iter(imagined.values()))
    size = checkpoint_bytes(config, one)
    write = size / cluster.disk
    stalled = _stalled(config, size, write, seconds)
    total = run.steps * seconds + run.steps / run.save_every * stalled
    sent = Counter[str]()
    for entry, share in shares.items():
        sent.update({name: share * size for name, size in speeds[entry].sent.items()})
    return Plan(
        world=cluster.world,
        pairs=batch // cluster.world,
        memory=largest,
        available=cluster.memory,
        step=seconds,
        products=mean(lambda entry: speeds[entry].products),
        messages=mean(lambda entry: speeds[entry].messages),
        optimizer=mean(lambda entry: speeds[entry].optimizer),
        data=mean(lambda entry: speeds[entry].data),
        samples_per_second=batch / seconds,
        mfu=mean(lambda entry: imagined[entry].model_flops) / seconds / cluster.flops,
        sent=dict(sent),
        steps=run.steps,
        days=total / DAY,
        gpu_hours=total / 3600 * cluster.world,
        reading=batch / seconds * cluster.sample,
        checkpoint=write,
        checkpoint_bytes=size,
        stalled=stalled,
        shards_per_rank=None if corpus.shards is None else corpus.shards / cluster.world,
    )


def _stalled(config: PretrainConfig, size: int, write: float, step: float) -> float:
    """Seconds that a save holds up training: the copy to the host, and what the save before still has to write."""
    if not config.run.async_save:
        return write
    return size / BUS + max(0.0, write - config.run.save_every * step)


def check_split(config: PretrainConfig, world: int) -> None:
    """Refuses what a run on so many ranks would.

    Raises:
        UserError: the batch, or a rank's part of it, does not divide.
    """
    batch, parts = config.data.global_batch, config.engine.accumulation
    if batch % world:
        raise UserError(f"`global_batch` (={batch}) must be divisible by `--nodes` x `--gpus` (={world})")
    if batch // world % parts:
        raise UserError(
            f"`engine.accumulation` (={parts}) must divide each rank's part of the global batch (={batch // world})"
        )
    if not config.objectives.chosen:
        raise UserError("`objectives` names none: there is nothing to plan")


def advice(config: PretrainConfig, corpus: Corpus, cluster: Cluster) -> tuple[list[str], int] | None:
    """Settings under which a run fits that does not, as overrides, and its peak then; None if none of these do."""
    chosen: dict[str, Any] = {}
    least = math.inf
    for change in SPARING:
        if not _spares(config, chosen | change):
            continue
        try:
            found = parse_config(PretrainConfig, merge(config.model_dump(), {"engine": chosen | change}))
            check_split(found, cluster.world)
            peak = max(_peak(found, corpus, cluster.world, entry) for entry in entries(found))
        except UserError:  # this model or batch does not allow it
            continue
        if peak >= least:  # buckets of a partitioned optimizer can be larger than a small model
            continue
        chosen, least = chosen | change, peak
        if peak <= cluster.memory:
            return [f"engine.{name}={str(value).lower()}" for name, value in chosen.items()], peak
    return None


def _spares(config: PretrainConfig, changes: dict[str, Any]) -> bool:
    """Whether the last change asks for more than is set already."""
    name, value = list(changes.items())[-1]
    now = getattr(config.engine, name)
    return now != value and not (isinstance(now, int) and value < now) and (name, now) != ("precision", "fp16")


def _peak(config: PretrainConfig, corpus: Corpus, world: int, entry: str) -> int:
    return memory(config, imagine(config, corpus, world, entry=entry), world).peak


def at_sizes(
    config: PretrainConfig, corpus: Corpus, cluster: Cluster, worlds: Sequence[int]
) -> Iterator[tuple[int, Plan]]:
    """The same run with as many pairs on each GPU, on each number of GPUs, for as many samples in all."""
    pairs, samples = config.data.global_batch // cluster.world, config.data.global_batch * config.run.steps
    for world in worlds:
        gpus = min(world, cluster.gpus)
        sized = Cluster(**asdict(cluster) | {"nodes": -(-world // gpus), "gpus": gpus})
        changes = {"data": {"global_batch": pairs * sized.world}}
        changes |= {"run": {"steps": max(1, samples // (pairs * sized.world))}}
        yield (
            sized.world,
            make_plan(parse_config(PretrainConfig, merge(config.model_dump(), changes)), corpus, sized),
        )
