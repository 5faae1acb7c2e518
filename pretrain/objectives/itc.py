"""Image-text contrast: the softmax loss of CLIP (arXiv:2103.00020), with several positives where pairs share a group.

Left out: momentum queues and soft targets (ALBEF).

Shapes: B pairs on this rank, G pairs of all ranks, E embedding size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.distributed import gather
from pretrain.models.interface import ModelShape
from pretrain.objectives.config import ITCConfig
from pretrain.objectives.views import Views
from pretrain.precision import full

COLDEST = 0.01  # CLIP clamps the scale at 100


def contrastive_loss(
    image_BE: Tensor,
    text_BE: Tensor,
    group_B: Tensor,
    temperature: Tensor,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mean of the image-to-text and text-to-image cross-entropies over the global batch.

    Args:
        image_BE: float [B, E], L2-normalised.
        text_BE: float [B, E], L2-normalised.
        group_B: int64 [B]; a row's target is uniform over all columns of its own group.
        temperature: float [1].
        label_smoothing: Share of the target that is spread over all columns (ALIGN uses 0.1).

    Returns:
        This rank's part, scaled so that the mean over ranks is the loss (see `pretrain.distributed`).
    """
    same_BG = group_B[:, None] == gather(group_B)[None, :]
    target_BG = same_BG / same_BG.sum(1, keepdim=True)
    target_BG = (1 - label_smoothing) * target_BG + label_smoothing / target_BG.shape[1]
    image_to_text_BG = image_BE @ gather(text_BE).T / temperature
    text_to_image_BG = text_BE @ gather(image_BE).T / temperature
    return (F.cross_entropy(image_to_text_BG, target_BG) + F.cross_entropy(text_to_image_BG, target_BG)) / 2


class ITC(nn.Module):
    """Owns the temperature, learned in log space."""

    reads = ("text", "image")

    def __init__(self, config: ITCConfig, shape: ModelShape) -> None:
        super().__init__()
        self.config = config
        # Shape [1]: DeepSpeed refuses parameters without dimensions.
        self.log_temperature = nn.Parameter(torch.tensor([config.temperature]).log())

    @property
    def temperature(self) -> Tensor:
        return self.log_temperature.exp().clamp(min=COLDEST)

    def forward(self, views: Views) -> Tensor:
        image_BE, text_BE = full(views.image.embedding_BE), full(views.text.embedding_BE)
        return contrastive_loss(
            image_BE, text_BE, views.batch.group_B, full(self.temperature), self.config.label_smoothing
        )
