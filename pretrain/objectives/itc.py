"""Image-text contrast: the softmax loss of CLIP (arXiv:2103.00020), with several positives where pairs share a group.

The losses are in `pretrain.objectives.contrast`.

Shapes: B pairs on this rank, E embedding size.
"""

import torch
from torch import Tensor, nn

from pretrain.models.interface import ModelShape
from pretrain.objectives.config import ITCConfig
from pretrain.objectives.contrast import contrastive_loss
from pretrain.objectives.views import Views

COLDEST = 0.01  # CLIP clamps the scale at 100


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
        image_BE, text_BE, group_B = views.image.embedding_BE, views.text.embedding_BE, views.batch.group_B
        smoothing = self.config.label_smoothing
        return contrastive_loss(image_BE, text_BE, group_B, self.temperature, label_smoothing=smoothing)
