"""Masked language modelling on text fused with its image (BERT, arXiv:1810.04805; ALBEF, arXiv:2107.07651).

Which tokens are masked is decided with the data (`pretrain.data.masking`).

Shapes: B pairs on this rank, L text tokens, M masked tokens, D width, V vocabulary.
"""

import torch
from torch import Tensor

from pretrain.data.masking import IGNORE
from pretrain.models.interface import ModelShape
from pretrain.models.packing import at
from pretrain.objectives.config import MLMConfig, Seq2SeqConfig
from pretrain.objectives.language import LanguageHead, distilled_word_loss, word_loss
from pretrain.objectives.objective import present
from pretrain.objectives.views import Look, Views


class MLM(LanguageHead):
    """Hidden words from both sides of the text and from the image."""

    look = Look.HIDDEN_WORDS

    def __init__(self, config: MLMConfig, shape: ModelShape) -> None:
        super().__init__(shape, config.tied, config.eps)
        self.config = config
        self.follows = config.targets == "distilled"
        view = "fused_masked_both" if config.image == "masked" else "fused_masked_text"
        self.reads = (view, "fused_masked_phrase") if config.regions else (view,)

    def predictions(self, views: Views) -> Tensor:
        """Logits of the masked tokens, float [M, V]."""
        hidden_BL = views.batch.masked_labels_BL != IGNORE
        return self.logits(at(getattr(views, self.reads[0]).text_BLD, hidden_BL), views.model.word_embedding_VD)

    def forward(self, views: Views) -> Tensor:
        loss, weight = self._whole(views), self.config.regions
        return loss + weight * self._of_regions(views) if weight else loss

    def _of_regions(self, views: Views) -> Tensor:
        labels_BP = present(views.batch.phrase_labels_BP)
        text_BPD = views.fused_masked_phrase.text_BLD[:, : labels_BP.shape[1]]  # padded to the longest text
        words_MD = at(text_BPD, labels_BP != IGNORE)
        return word_loss(self.logits(words_MD, views.model.word_embedding_VD), labels_BP[labels_BP != IGNORE])

    def _whole(self, views: Views) -> Tensor:
        labels_BL = views.batch.masked_labels_BL
        logits_MV, labels_M = self.predictions(views), labels_BL[labels_BL != IGNORE]
        if self.config.targets == "hard":
            return word_loss(logits_MV, labels_M)
        teacher = views.followed
        with torch.no_grad():
            head = teacher.heads["mlm"]
            assert isinstance(head, MLM)
            teacher_MV = head.predictions(teacher.views)
        return distilled_word_loss(logits_MV, labels_M, teacher_MV, teacher.alpha)


class Seq2Seq(LanguageHead):
    """Hidden words from the image and from what stands before them (Unified-VLP, arXiv:1909.11059)."""

    reads = ("fused_seq2seq",)

    def __init__(self, config: Seq2SeqConfig, shape: ModelShape) -> None:
        super().__init__(shape)

    def forward(self, views: Views) -> Tensor:
        labels_BL = views.batch.masked_labels_BL
        hidden_BL = labels_BL != IGNORE
        logits_MV = self.logits(at(views.fused_seq2seq.text_BLD, hidden_BL), views.model.word_embedding_VD)
        return word_loss(logits_MV, labels_BL[hidden_BL])
