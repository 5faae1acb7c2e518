"""One imagined step of a configuration on one rank of so many: the real task on tensors without storage."""

import dataclasses
import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import _disable_current_modes

from pretrain.arrange import arrange
from pretrain.bank import check_frozen
from pretrain.batch import Batch
from pretrain.config import PretrainConfig
from pretrain.flops import FlopMeter
from pretrain.models.build import self_contained
from pretrain.objectives.bank import Bank
from pretrain.optim import build_optimizer, freeze
from pretrain.planning.batch import largest_batch
from pretrain.planning.kernels import AsOnGpu
from pretrain.planning.optimizer import Group, grouped
from pretrain.planning.sources import Corpus
from pretrain.planning.trace import Recorder, Trace
from pretrain.task import Task, outline

Device = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class Imagined:
    """What the step tells.

    Attributes:
        elements: Of each parameter, momentum towers left out, and `copies` of all of those.
        groups: What is trained, as the optimizer groups it.
        buffers: Bytes, as `batch`, and `saved` of all that `state_dict` gives.
        model_flops: Of this rank's step, without what is computed again.
    """

    trace: Trace
    elements: tuple[int, ...]
    groups: tuple[Group, ...]
    copies: int
    buffers: int
    saved: int
    batch: int
    model_flops: int

    @property
    def whole(self) -> int:
        """Elements of all parameters but the momentum towers'."""
        return sum(self.elements)

    @property
    def trained(self) -> int:
        return sum(group.elements for group in self.groups)

    @property
    def moments(self) -> int:
        """Numbers that the optimizer remembers."""
        return sum(group.remembered * group.elements for group in self.groups)


def entries(config: PretrainConfig) -> dict[str, float]:
    """What the steps of a run train, objectives joined by `+`, and the share of the steps that train it."""
    mix = config.objectives.mix or {"+".join(config.objectives.chosen): 1.0}
    return {entry: weight / sum(mix.values()) for entry, weight in mix.items()}


def imagine(
    config: PretrainConfig, corpus: Corpus, world: int = 1, on: Device = "gpu", entry: str | None = None
) -> Imagined:
    """Takes a step that trains `entry` (None: all objectives).

    Raises:
        UserError: what `pretrain.train.check` would refuse of the model.
    """
    # Initial weights change no cost and may not be here yet.
    task = outline(self_contained(config.model), config.objectives, corpus.vocabulary)
    freeze(task, config.optim.freeze)
    check_frozen(task)
    _fill_bank(task, corpus)
    groups = grouped(build_optimizer(task, config.optim).param_groups)
    if entry:
        task.choose(entry.split("+"))
    arrange(task, config.engine.model_copy(update={"compile": False}))  # memory and products are about the same
    batch = largest_batch(config, config.data.global_batch // world)
    with _ranks(world), FakeTensorMode():
        task._apply(lambda x: torch.empty(x.shape, dtype=x.dtype))  # fake, and of the CPU in place of the meta device
        trace, flops, copied = _run(task, batch, on, corpus)
    momentum = [] if task.momentum is None else list(task.momentum.parameters())
    whole = [p for p in task.parameters() if not any(p is q for q in momentum)]
    return Imagined(
        trace=trace,
        elements=tuple(p.numel() for p in whole),
        groups=groups,
        copies=sum(p.numel() for p in momentum),
        buffers=sum(b.nbytes for b in task.buffers()),
        saved=sum(x.nbytes for x in task.state_dict().values()),
        batch=copied,
        model_flops=flops,
    )


def _run(task: Task, batch: Batch, on: Device, corpus: Corpus) -> tuple[Trace, int, int]:
    """Forward and backward."""
    fakes = batch.each(lambda x: torch.empty(x.shape, dtype=x.dtype))
    names = [f.name for f in dataclasses.fields(batch) if getattr(batch, f.name) is not None]
    pairs = [(getattr(fakes, name), getattr(batch, name)) for name in names]
    shadows = [(fake, real) for fake, real in pairs if real.dtype != torch.float32]
    recorder, meter = Recorder([*shadows, *_groups(task)], corpus.bank[1]), FlopMeter(task)
    recorder.hold("held", [*task.parameters(), *task.buffers(), *(fake for fake, _ in pairs)])
    for parameter in task.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(recorder.gradient)
    trace = recorder.trace
    kernels = AsOnGpu(trace) if on == "gpu" else None
    with _no_collector(), kernels or nullcontext(), recorder:
        losses = task(fakes)
        trace.forward = recorder.now
        with kernels.again() if kernels else nullcontext():
            losses["loss"].backward()
        trace.backward = recorder.now
    trace.name_kept()
    return trace, meter.step, sum(fake.nbytes for fake, _ in pairs)


def _fill_bank(task: Task, corpus: Corpus) -> None:
    """As `pretrain.bank.fill_bank`, without values."""
    if "bank" in task.objectives:
        bank, (texts, groups) = task.objectives["bank"], corpus.bank
        assert isinstance(bank, Bank)
        bank.features_TD = torch.empty(texts, task.model.text.width, device="meta")
        for name in ("group_G", "starts_G", "counts_G"):
            setattr(bank, name, torch.empty(groups, dtype=torch.int64, device="meta"))


def _groups(task: Task) -> Iterator[tuple[Tensor, Tensor]]:
    """The bank's groups with their numbers, as the largest batch has them."""
    if "bank" in task.objectives:
        fake = cast(Bank, task.objectives["bank"]).group_G
        with _disable_current_modes():
            yield fake, torch.arange(len(fake))


@contextmanager
def _no_collector() -> Iterator[None]:
    """Else tensors would die whenever Python looks for cycles."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def _ranks(world: int) -> Iterator[None]:
    """A process group of so many ranks in which only this one is real."""
    if world == 1:
        yield
        return
    dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
