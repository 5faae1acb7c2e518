"""What a step tells every rank alike: the losses of the global batch, and what any rank says beside them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain import distributed
from shards.errors import Stopped


class Sick(Stopped):
    """A batch must not move the weights, and has not: all ranks stop alike, before the optimizer moves."""


class NonFinite(Sick):
    """A loss or the gradient became NaN or infinite."""


class Spike(Sick):
    """The loss is far above what it was."""


@dataclass(frozen=True)
class Votes:
    """What one rank says, or after `agreed` what any rank says.

    Attributes:
        stop: Was asked to stop.
        writing: Is writing its part of a checkpoint.
        failed: Could not write it.
    """

    stop: bool = False
    writing: bool = False
    failed: bool = False


SILENT = Votes()


@dataclass(frozen=True)
class Stepped:
    """A step; the same on every rank.

    Attributes:
        losses: Of the global batch.
        votes: Of any rank.
    """

    losses: dict[str, float]
    votes: Votes


def over_ranks(losses: dict[str, Tensor], votes: Votes) -> Stepped:
    """Mean losses and the votes of all ranks, in one all-reduce; no losses are allowed."""
    said = [float(votes.stop), float(votes.writing), float(votes.failed)]
    device = next((loss.device for loss in losses.values()), distributed.collective_device())
    values = torch.stack([*(loss.detach().float() for loss in losses.values()), *torch.tensor(said, device=device)])
    *means, stop, writing, failed = (distributed.sum_over_ranks(values) / distributed.world()).tolist()  # host sync
    return Stepped(dict(zip(losses, means, strict=True)), Votes(stop > 0, writing > 0, failed > 0))


def agreed(votes: Votes) -> Votes:
    """What any rank says; every rank calls it."""
    return over_ranks({}, votes).votes
