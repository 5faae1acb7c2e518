"""Momentum towers: slow copies of the model and of the heads that objectives distil from (ALBEF, arXiv:2107.07651).

They are part of the task, so checkpoints hold them and resuming restores them bit for bit. Their weights stay float32.
Every rank keeps them whole and moves them alike, so they need parameters that are whole: ZeRO 0 to 2.
"""

import copy
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from pretrain.models.build import DuoModel
from pretrain.objectives.config import MomentumConfig
from pretrain.objectives.objective import Objective

Module = TypeVar("Module", bound=nn.Module)


class Momentum(nn.Module):
    """Copies of `model` and `heads` that are evaluated and never trained."""

    steps: Tensor

    def __init__(self, config: MomentumConfig, model: DuoModel, heads: Mapping[str, Objective]) -> None:
        super().__init__()
        self.config = config
        self.model = copied(model)
        self.heads = nn.ModuleDict({name: copied(head) for name, head in heads.items()})
        self.register_buffer("steps", torch.zeros(1, dtype=torch.int64))

    @property
    def alpha(self) -> Tensor:
        """The share in distilled targets at this step, float [1]."""
        ramp = self.config.ramp_steps
        grown = (self.steps / ramp).clamp(max=1) if ramp else torch.ones_like(self.steps)
        return self.config.alpha * grown

    def train(self, mode: bool = True) -> "Momentum":
        """Stays in evaluation mode: a teacher without dropout."""
        return super().train(False)

    @torch.no_grad()
    def follow(self, model: DuoModel, heads: Mapping[str, Objective], *, start: bool = False) -> None:
        """Moves a step towards the trained weights; `start` takes them as they are.

        Buffers (statistics of BatchNorm) are taken as they are.
        """
        decay = 0.0 if start else self.config.decay
        trained: list[nn.Module] = [model, *(heads[name] for name in self.heads)]
        for slow, fast in zip((self.model, *self.heads.values()), trained, strict=True):
            torch._foreach_lerp_(list(slow.parameters()), [p.detach() for p in fast.parameters()], 1 - decay)
            for old, new in zip(slow.buffers(), fast.buffers(), strict=True):
                old.copy_(new)
        if not start:
            self.steps += 1


def copied(module: Module) -> Module:
    """Equal, not trained, and in evaluation mode."""
    return copy.deepcopy(module).requires_grad_(False).eval()
