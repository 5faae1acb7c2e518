"""Which objectives are trained, and how each is set."""

from typing import Literal

from pydantic import Field

from pretrain.settings import Section


class ITCConfig(Section):
    """Image-text contrast (CLIP, arXiv:2103.00020; multi-positive targets by group)."""

    weight: float = Field(1.0, gt=0)
    temperature: float = Field(0.07, gt=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)


class ITMConfig(Section):
    """Image-text matching with one hard negative image and one such text per pair (ALBEF, arXiv:2107.07651)."""

    weight: float = Field(1.0, gt=0)
    negatives: Literal["hard", "random"] = "hard"


class MLMConfig(Section):
    """Masked language modelling on the fused features (BERT, arXiv:1810.04805: 80 % mask, 10 % random, 10 % kept).

    `unit` is what is hidden together: single tokens, whole words (ViLT) or spans of words (SpanBERT).
    """

    weight: float = Field(1.0, gt=0)
    probability: float = Field(0.15, gt=0, lt=1)
    unit: Literal["token", "word", "span"] = "token"


class ObjectivesConfig(Section):
    """Which losses are summed, each with its weight; null leaves one out."""

    itc: ITCConfig | None = None
    itm: ITMConfig | None = None
    mlm: MLMConfig | None = None
