"""The head that predicts words from features, and the loss of its predictions.

Shapes: M predicted tokens on this rank, D width, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.distributed import global_mean
from pretrain.models.blocks import initialize
from pretrain.models.interface import ModelShape
from pretrain.objectives.objective import Objective
from pretrain.precision import in_full_precision


@in_full_precision
def word_loss(logits_MV: Tensor, labels_M: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy over the predicted tokens of all ranks."""
    return global_mean(F.cross_entropy(logits_MV, labels_M, reduction="none", label_smoothing=label_smoothing))


@in_full_precision
def distilled_word_loss(logits_MV: Tensor, labels_M: Tensor, teacher_MV: Tensor, alpha: Tensor) -> Tensor:
    """The same with a share `alpha`, float [1], of the teacher's opinion in each target (ALBEF, eq. 7)."""
    soft_M = -(teacher_MV.detach().softmax(1) * logits_MV.log_softmax(1)).sum(1)
    return (1 - alpha[0]) * word_loss(logits_MV, labels_M) + alpha[0] * global_mean(soft_M)


class LanguageHead(Objective):
    """BERT's prediction head (arXiv:1810.04805); its output matrix is the text side's input embedding where `tied`."""

    def __init__(self, shape: ModelShape, tied: bool = True, eps: float | None = None) -> None:
        super().__init__()
        width = shape.width
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps or shape.eps))
        self.bias = nn.Parameter(torch.zeros(shape.vocabulary))
        self.tied = tied
        self.decoder = None if tied else nn.Linear(width, shape.vocabulary, bias=False)
        if self.decoder is not None:
            initialize(self.decoder)

    def logits(self, features_MD: Tensor, word_embedding_VD: Tensor) -> Tensor:
        """float [M, V]."""
        matrix_VD = word_embedding_VD if self.decoder is None else self.decoder.weight
        return F.linear(self.transform(features_MD), matrix_VD, self.bias)
