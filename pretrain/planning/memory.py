"""Memory of a rank: what the imagined step holds, and what DeepSpeed 0.19 keeps and copies at each ZeRO stage.

    always                weights, their copies (momentum towers, EMA), buffers, the batch, the optimizer's state
    forward and backward  and activations, gathered features, workspace, and gradients as they become ready
    reduction             and all gradients, and the bucket in which they travel
    optimizer             and this rank's gradients once more as one vector (stages 1 to 3), and its temporaries

The peak is the largest of the last three. Weights, gradients and the optimizer are float32 in every precision; stages 1
to 3 keep the weights that they update once more.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pretrain.config import PretrainConfig
from pretrain.planning.optimizer import temporary
from pretrain.planning.step import Device, Imagined

FLOAT = 4
BUCKET, PERSISTENT, REUSED = 5e8, 1e5, 1e9
"""Elements, unless `engine.deepspeed.zero_optimization` says otherwise: of the buffer in which gradients travel, of the
largest parameter that stage 3 leaves whole, and of all that it keeps fetched from the forward to the backward."""


@dataclass(frozen=True)
class Memory:
    """Bytes on the device of one rank.

    Attributes:
        parts: The most that each part holds at any moment.
        moments: What all parts hold together at each moment.
        host: What a rank holds on its host, where `engine.offload` moves parts there.
    """

    parts: Mapping[str, int]
    moments: Mapping[str, int]
    host: Mapping[str, int] = field(default_factory=dict)

    @property
    def moment(self) -> str:
        """The moment of the peak."""
        return max(self.moments, key=lambda name: self.moments[name])

    @property
    def peak(self) -> int:
        return self.moments[self.moment]


@dataclass(frozen=True)
class Shares:
    """What DeepSpeed holds on a rank, in bytes.

    Attributes:
        weights: Always; `fetched` as well during forward and backward.
        master: The part of the weights that this rank updates, kept apart.
        moments: Of the optimizer.
        own: Gradients of the parameters that this rank updates.
        bucket: The buffer in which gradients travel, `message` what is copied out of it on the way.
        vector: The gradients of the largest group as the optimizer takes them.
        updated: Elements of the largest group that the optimizer updates at once.
    """

    weights: int
    fetched: int
    master: int
    moments: int
    own: int
    bucket: int
    message: int
    vector: int
    updated: int


def memory(config: PretrainConfig, step: Imagined, world: int, on: Device = "gpu") -> Memory:
    """Of a rank in the steady state, when the optimizer has its moments."""
    shares = partition(config, step, world)
    fetched = shares.fetched * (2 if on == "cpu" else 1)  # gloo gathers into a copy
    host = _on_host(config, shares)
    held = {
        "parameters": shares.weights,
        "momentum towers": FLOAT * step.copies,
        "average of the weights": FLOAT * -(-step.whole // world) if config.optim.ema else 0,
        "optimizer": shares.master + shares.moments,
        "buffers and batch": step.buffers + step.batch,
    }
    held = {part: size - host.get(part, 0) for part, size in held.items()}
    own = 0 if "gradients" in host else shares.own
    always, timeline = sum(held.values()), step.trace.timeline()
    moving = [sum(parts.values()) - parts["held"] for parts in timeline]
    peaks = [size + grad for size, grad in zip(moving, _early(config, step, own, shares.bucket), strict=True)]
    updating = 0 if "optimizer" in host else shares.vector + FLOAT * _temporary(config, step, shares, on)
    largest = {name: max(parts.get(name, 0) for parts in timeline) for name in ("activations", "gathered", "workspace")}
    return Memory(
        parts=held | {"fetched parameters": fetched, "gradients": own + shares.bucket} | largest,
        moments={
            "forward and backward": always + fetched + max(peaks),
            "reduction": always + own + shares.bucket + shares.message,
            "optimizer": always + own + updating + (shares.bucket if config.engine.zero == 3 else 0),
        },
        host=host,
    )


def partition(config: PretrainConfig, step: Imagined, world: int) -> Shares:
    """Who holds what at the configured stage."""
    keys = config.engine.deepspeed.get("zero_optimization", {})
    bucket = int(keys.get("reduce_bucket_size", BUCKET))
    trained, zero = step.trained, config.engine.zero
    largest = max(group.elements for group in step.groups)
    if zero == 0:
        message = FLOAT * min(trained, int(BUCKET) + max(step.elements)) if world > 1 else 0  # a copy of what it sends
        weights = FLOAT * step.whole
        return Shares(weights, 0, 0, FLOAT * step.moments, FLOAT * trained, 0, message, 0, largest)
    mine = -(-trained // world)
    group = -(-largest // world)
    doubled = 2 if keys.get("overlap_comm", False) and zero < 3 else 1
    message = FLOAT * min(bucket, trained) if world > 1 else 0
    weights, fetched = FLOAT * step.whole, 0
    if zero == 3 and world > 1:  # alone, a rank has all parts
        small = sum(n for n in step.elements if n <= keys.get("stage3_param_persistence_threshold", PERSISTENT))
        weights = FLOAT * (-(-step.whole // world) + small)
        fetched = FLOAT * int(min(step.whole - small, keys.get("stage3_max_reuse_distance", REUSED)))
    if zero == 3:
        group = mine
    return Shares(
        weights=weights,
        fetched=fetched,
        master=FLOAT * mine,
        moments=FLOAT * step.moments // trained * mine,  # as many of each element
        own=FLOAT * mine,
        bucket=FLOAT * bucket * doubled,
        message=message,
        vector=FLOAT * group,
        updated=group,
    )


def _early(config: PretrainConfig, step: Imagined, own: int, bucket: int) -> list[int]:
    """Bytes of gradients after each operation of forward and backward.

    At stage 3 one vector is for all steps; stages 1 and 2 make the bucket for each backward, and room for their own
    when it is full for the first time.
    """
    ready = step.trace.gradients()
    if config.engine.zero == 0:
        return ready
    if config.engine.zero == 3:
        return [own + bucket] * len(ready)
    backward = [now > step.trace.forward for now in range(len(ready))]
    return [bucket * began + own * (size > bucket) for began, size in zip(backward, ready, strict=True)]


def _temporary(config: PretrainConfig, step: Imagined, shares: Shares, on: Device) -> int:
    """Elements that an update needs for a while."""
    whole = config.engine.zero == 0 and on == "cpu"  # one tensor after the other
    updated = max(size for group in step.groups for size in group.sizes) if whole else shares.updated
    return temporary(config.optim.name, config.optim.weight_decay, step.groups, updated, on == "gpu")


def _on_host(config: PretrainConfig, shares: Shares) -> dict[str, int]:
    match config.engine.offload:
        case "optimizer":
            return {"optimizer": shares.master + shares.moments, "gradients": shares.own}
        case "all":
            optimizer = shares.master + shares.moments
            return {"optimizer": optimizer, "gradients": shares.own, "parameters": shares.weights}
    return {}
