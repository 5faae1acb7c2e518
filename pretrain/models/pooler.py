"""The vector that stands for a pair.

Shapes: B pairs, L text tokens, N image tokens, D text width, C image width, P pooled width.
"""

import torch
from torch import Tensor, nn

from pretrain.models.config import FusionConfig


class PairPooler(nn.Module):
    """First tokens -> float [B, P], as `FusionConfig.pooler` says."""

    def __init__(self, config: FusionConfig, text_width: int, image_width: int) -> None:
        super().__init__()
        self.kind, self.width = config.pooler, text_width
        match config.pooler:
            case "tanh":
                self.text = nn.Linear(text_width, text_width)
            case "product":
                self.width = config.pooled_width or text_width
                self.text, self.image = nn.Linear(text_width, self.width), nn.Linear(image_width, self.width)
            case "concatenate":
                self.width = 2 * text_width
                self.text, self.image = nn.Linear(text_width, text_width), nn.Linear(image_width, text_width)

    def forward(self, text_BLD: Tensor, image_BNC: Tensor | None) -> Tensor:
        text_BD = text_BLD[:, 0]
        if self.kind == "first":
            return text_BD
        if self.kind == "tanh":
            return self.text(text_BD).tanh()
        if image_BNC is None:
            raise ValueError(f"`model.fusion.pooler` (={self.kind}) needs image tokens, which this trunk leaves alone")
        if self.kind == "product":
            return self.text(text_BD).relu() * self.image(image_BNC[:, 0]).relu()
        return torch.cat([self.text(text_BD).tanh(), self.image(image_BNC[:, 0]).tanh()], 1)
