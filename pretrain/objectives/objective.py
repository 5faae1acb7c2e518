"""What all objectives have in common."""

from collections.abc import Sequence

from torch import Tensor, nn

from pretrain.objectives.views import Look, Views


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
