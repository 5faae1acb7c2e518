"""From one side's pooled vector to the shared space.

Shapes: B items, D width, H hidden units, E embedding size.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.models.config import TextHeadConfig


class TextHead(nn.Module):
    """LayerNorm, then a linear map plus a GELU network: what a frozen text encoder says, bent towards the images.

    The linear part carries over what the encoder knows of texts that training has not met; the network can move single
    texts, which a linear map of few dimensions cannot.
    """

    def __init__(self, config: TextHeadConfig, width: int, embedding_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, embedding_dim)
        self.hidden = nn.Linear(width, config.hidden)
        self.out = nn.Linear(config.hidden, embedding_dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, pooled_BD: Tensor) -> Tensor:
        """float [B, E], not normalised."""
        normal_BD = self.norm(pooled_BD)
        bent_BH = self.dropout(F.gelu(self.hidden(normal_BD)))
        return self.linear(normal_BD) + self.out(bent_BH)
