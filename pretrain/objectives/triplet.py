"""The hinge of VSE++ on the similarity of a shared space (arXiv:1707.05612, eq. 4 and 6).

    sum over both directions of max(0, margin + s(wrong) - s(right)), of the hardest wrong item, or of all of them

Shapes: B pairs on this rank, G pairs of all ranks, E embedding size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.distributed import gather, global_mean
from pretrain.models.interface import ModelShape
from pretrain.objectives.config import TripletConfig
from pretrain.objectives.objective import Objective
from pretrain.objectives.views import Views
from pretrain.precision import in_full_precision
from shards.errors import UserError


@in_full_precision
def triplet_loss(image_BE: Tensor, text_BE: Tensor, group_B: Tensor, margin: float, hardest: bool = True) -> Tensor:
    """This rank's part of the mean over the pairs of the global batch.

    Args:
        image_BE, text_BE: float [B, E], L2-normalised.
        group_B: int64 [B]; pairs of one group are never wrong for each other.
        hardest: The largest hinge of each row counts, else the sum of all.
    """
    right_B = (image_BE * text_BE).sum(1)
    allowed_BG = group_B[:, None] != gather(group_B)
    total_B = torch.zeros_like(right_B)
    for own_BE, others_GE in ((image_BE, gather(text_BE)), (text_BE, gather(image_BE))):
        hinge_BG = F.relu(margin + own_BE @ others_GE.T - right_B[:, None]) * allowed_BG
        total_B = total_B + (hinge_BG.amax(1) if hardest else hinge_BG.sum(1))
    return global_mean(total_B)


class Triplet(Objective):
    """Has no parameters of its own."""

    reads = ("text", "image")

    def __init__(self, config: TripletConfig, shape: ModelShape) -> None:
        super().__init__()
        if shape.embedding_dim is None:
            raise UserError(
                "`objectives.triplet` compares in a shared space, so `model.embedding_dim` must not be null"
            )
        self.config = config

    def forward(self, views: Views) -> Tensor:
        image_BE, text_BE = views.image.embedding_BE, views.text.embedding_BE
        return triplet_loss(image_BE, text_BE, views.batch.group_B, self.config.margin, self.config.hardest)
