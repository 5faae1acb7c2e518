"""Word-region and word-patch alignment by optimal transport (UNITER, arXiv:1909.11740; ViLT, arXiv:2102.03334).

The transport distance of words and image tokens shall be small in true pairs and large in swapped ones, those that
matching with `negatives=swap` reads too. The frame of the text and the image's class token take no part.

Shapes: B pairs on this rank, L text tokens, N image tokens.
"""

import torch
from torch import Tensor

from pretrain.distributed import global_mean
from pretrain.models.interface import ModelShape
from pretrain.objectives.config import WRAConfig
from pretrain.objectives.objective import Objective, present
from pretrain.objectives.transport import transport_distance
from pretrain.objectives.views import Views
from shards.errors import UserError


class WRA(Objective):
    """Has no parameters of its own."""

    reads = ("fused_swapped",)

    def __init__(self, config: WRAConfig, shape: ModelShape) -> None:
        super().__init__()
        if shape.width != shape.image_width:
            raise UserError(
                f"`objectives.wra` compares fused words (width {shape.width}) with image tokens (width "
                f"{shape.image_width}): their widths must be equal"
            )
        self.config, self.prefix = config, shape.image_prefix

    def forward(self, views: Views) -> Tensor:
        fused, match_B = views.fused_swapped, views.swap.match_B
        image_BND, mask_BN = present(fused.image_BND)[:, self.prefix :], views.image.mask_BT[:, self.prefix :]
        words_BL = inner(views.swapped_text.mask_BT)
        beta, iterations = self.config.beta, self.config.iterations
        distance_B = transport_distance(fused.text_BLD, image_BND, words_BL, mask_BN, beta=beta, iterations=iterations)
        return global_mean(torch.where(match_B, distance_B, -distance_B))


def inner(mask_BL: Tensor) -> Tensor:
    """bool [B, L], without each text's first and last token."""
    place_BL = mask_BL.long().cumsum(1)
    return mask_BL & (place_BL > 1) & (place_BL < place_BL[:, -1:])
