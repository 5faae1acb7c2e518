"""Time of a step and what it sends: products at an assumed share of the peak, messages around a ring.

    step = max(products + messages that nothing hides + optimizer, decoding of the next batch)

A ring of W ranks sends, from each rank, (W - 1) / W of the bytes in a reduce-scatter or an all-gather, and twice that
in an all-reduce. Its slowest link is the GPUs' own inside a node; between nodes all GPUs of a node share its network.
Gradients, and at stages 1 and 2 the new weights, travel when the products are done; stage 3 fetches weights meanwhile.
The optimizer passes over memory, and Muon multiplies; on the host it has the host's memory, and a bus between.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pretrain.config import PretrainConfig
from pretrain.planning.memory import FLOAT, partition
from pretrain.planning.optimizer import launches, passes, products
from pretrain.planning.step import Imagined

LATENCY = 10e-6
"""Seconds that a message takes to the next rank."""
DECODED = 1000.0
"""Images that one core decodes and resizes a second (measured: 0.98 ms each)."""

HOST, BUS = 2e11, 25e9
"""Bytes/s that a host reads from its memory and writes to it, and between it and one GPU (PCIe 4, 16 lanes)."""


@dataclass(frozen=True)
class Cluster:
    """What a run is planned for.

    Attributes:
        flops: Of one GPU at its peak, in the run's precision, and `flops_bf16` in bfloat16.
        mfu: The share of the peak that products reach, those computed again included; an assumption.
        memory: Bytes of one GPU, and `bandwidth` bytes/s to them.
        link: Bytes/s between GPUs of a node, and `network` out of a node, in each direction.
        disk: Bytes/s at which checkpoints are written.
        sample: Bytes of one pair in the shards.
    """

    nodes: int
    gpus: int
    flops: float
    flops_bf16: float
    mfu: float
    memory: float
    bandwidth: float
    link: float
    network: float
    disk: float
    sample: float

    @property
    def world(self) -> int:
        return self.nodes * self.gpus

    @property
    def ring(self) -> float:
        """Bytes/s through the slowest link of a ring over all GPUs."""
        return self.link if self.nodes == 1 else min(self.link, self.network)


@dataclass(frozen=True)
class Speed:
    """Seconds of a step, and their parts; `sent` are bytes that each rank sends in a step, by what they are."""

    products: float
    messages: float
    hidden: float
    optimizer: float
    data: float
    sent: Mapping[str, float]

    @property
    def step(self) -> float:
        return max(max(self.products, self.hidden) + self.messages + self.optimizer, self.data)


def speed(config: PretrainConfig, step: Imagined, cluster: Cluster) -> Speed:
    """Of the imagined step on so many GPUs."""
    messages = sent(config, step, cluster.world)
    hides = ("weights fetched",) if config.engine.zero == 3 else ()
    times = {name: _time(config, name, size, step, cluster) for name, size in messages.items()}
    workers = max(1, config.data.workers)
    pairs = config.data.global_batch // cluster.world
    return Speed(
        products=step.trace.flops / (cluster.flops * cluster.mfu),
        messages=sum(seconds for name, seconds in times.items() if name not in hides),
        hidden=sum(seconds for name, seconds in times.items() if name in hides),
        optimizer=_optimizer(config, step, cluster),
        data=0.0 if config.model.vision.region else pairs / (DECODED * workers),
        sent=messages,
    )


def _optimizer(config: PretrainConfig, step: Imagined, cluster: Cluster) -> float:
    """Seconds of an update; on the host the ranks of a node share its memory."""
    name, parts = config.optim.name, cluster.world if config.engine.zero else 1
    moved = FLOAT * passes(name, step.groups) / parts
    if config.engine.offload != "none":
        return moved * cluster.gpus / HOST + 2 * FLOAT * step.trained / parts / BUS
    working = moved / cluster.bandwidth + products(step.groups) / (cluster.flops_bf16 * cluster.mfu)
    return max(working, launches(name, step.groups))


def sent(config: PretrainConfig, step: Imagined, world: int) -> dict[str, float]:
    """Bytes that each rank sends in a step of the ring, by what they are."""
    share, gradients = (world - 1) / world, FLOAT * step.trained
    if world == 1:
        return {}
    handed = step.trace.sent
    found = {"features gathered": (world - 1) * handed["allgather"] + 2 * share * handed["allreduce"]}
    match config.engine.zero:
        case 0 | 1 | 2:
            found["gradients"] = 2 * share * gradients
        case 3:
            found["gradients"] = share * gradients
            found["weights fetched"] = share * FLOAT * step.whole
    if config.engine.zero in (1, 2):
        found["new weights"] = share * gradients
    return found


def _time(config: PretrainConfig, name: str, size: float, step: Imagined, cluster: Cluster) -> float:
    """Bytes at the speed of the ring, and a latency that grows with the logarithm of the ranks for each message."""
    bucket = partition(config, step, cluster.world).bucket or 2e9
    messages = max(1, math.ceil(size / bucket)) if name != "features gathered" else 8
    return size / cluster.ring + messages * LATENCY * 2 * math.log2(cluster.world)


def checkpoint_bytes(config: PretrainConfig, step: Imagined) -> int:
    """Weights, as DeepSpeed has them (but at stage 3), as its optimizer has them (but at stage 0) and their average;
    moments as DeepSpeed has them and whole."""
    zero = config.engine.zero
    copies = 1 + (zero < 3) + (zero > 0) + bool(config.optim.ema)
    return copies * step.saved + 2 * FLOAT * step.moments
