"""Masked language modelling on text fused with its image (BERT, arXiv:1810.04805; ALBEF, arXiv:2107.07651).

Which tokens are masked is decided with the data (`pretrain.data.masking`). Left out: soft-distilled targets.

Shapes: B pairs on this rank, L text tokens, M masked tokens, D width, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.data.masking import IGNORE
from pretrain.distributed import sum_over_ranks, world
from pretrain.models.interface import ModelShape
from pretrain.objectives.config import MLMConfig
from pretrain.objectives.views import Views
from pretrain.precision import full


def masked_token_loss(logits_MV: Tensor, labels_M: Tensor) -> Tensor:
    """Cross-entropy over the masked tokens of all ranks; the mean over ranks of the result is the loss."""
    count = sum_over_ranks(torch.tensor(len(labels_M), device=labels_M.device))
    return world() * F.cross_entropy(full(logits_MV), labels_M, reduction="sum") / count.clamp(min=1)


class MLM(nn.Module):
    """BERT's prediction head; its output matrix is the text encoder's input embedding."""

    reads = ("fused_masked_text",)

    def __init__(self, config: MLMConfig, shape: ModelShape) -> None:
        super().__init__()
        self.config = config
        width = shape.width
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(shape.vocabulary))

    def forward(self, views: Views) -> Tensor:
        fused_BLD = views.fused_masked_text.text_BLD
        chosen_BL = views.batch.masked_labels_BL != IGNORE
        features_MD = self.transform(fused_BLD[chosen_BL])
        logits_MV = F.linear(features_MD, views.model.word_embedding_VD, self.bias)
        return masked_token_loss(logits_MV, views.batch.masked_labels_BL[chosen_BL])
