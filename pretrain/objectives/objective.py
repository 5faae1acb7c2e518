"""What all objectives have in common."""

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor, nn

from pretrain.objectives.views import Look, Views

Present = TypeVar("Present")


class Objective(nn.Module):
    """A loss with the head that it needs, made of its section of the configuration and a `ModelShape`.

    Attributes:
        reads: The views that `forward` reads: names of properties of `Views`.
        follows: Whether it reads the momentum towers.
        look: How much it reads of the fused ones among its views.
    """

    reads: Sequence[str]
    follows: bool = False
    look: Look = Look.ALL

    def forward(self, views: Views) -> Tensor:
        """This rank's part of the loss, a float scalar, by the convention of `pretrain.distributed`."""
        raise NotImplementedError


def two_layers(width: int, outputs: int) -> nn.Sequential:
    """X-VLM's heads (arXiv:2111.08276, official code): float [..., width] -> float [..., outputs]."""
    inner = 2 * width
    return nn.Sequential(nn.Linear(width, inner), nn.LayerNorm(inner), nn.GELU(), nn.Linear(inner, outputs))


def present(value: Present | None) -> Present:
    """What the configuration was checked to provide."""
    assert value is not None, "the batch or the trunk lacks what an objective reads"
    return value
