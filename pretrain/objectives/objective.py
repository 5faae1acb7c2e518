"""What all objectives have in common."""

from collections.abc import Sequence

from torch import Tensor, nn

from pretrain.objectives.views import Views


class Objective(nn.Module):
    """A loss with the head that it needs, made of its section of the configuration and a `ModelShape`.

    Attributes:
        reads: The views that `forward` reads: names of properties of `Views`.
        follows: Whether it reads the momentum towers.
    """

    reads: Sequence[str]
    follows: bool = False

    def forward(self, views: Views) -> Tensor:
        """This rank's part of the loss, a float scalar, by the convention of `pretrain.distributed`."""
        raise NotImplementedError
