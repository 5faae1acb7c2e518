"""What a model is made of: encoders, trunk and shared space."""

from typing import Any, Literal

from pydantic import Field

from pretrain.settings import Section


class VisionConfig(Section):
    """A timm image encoder.

    `name` is a timm model name, `options` are passed to its constructor, and `weights` names where its initial weights
    come from: null for random, a safetensors file, or `timm` for timm's own pretrained tag (needs a network or a filled
    cache).
    """

    name: str = "vit_base_patch16_224"
    options: dict[str, Any] = Field({})
    weights: str | None = None


class TextConfig(Section):
    """A BERT-shaped text encoder from transformers.

    `options` are fields of `transformers.BertConfig`. `weights` is null for random, else a local folder or
    `package:NAME/FOLDER` for a folder inside an installed Python package; the folder's config.json then gives the
    shape."""

    options: dict[str, Any] = Field({})
    weights: str | None = None
    pooling: Literal["cls", "mean"] = "cls"


class FusionConfig(Section):
    """How the modalities meet: `text_queries_image` (cross-attention, as in ALBEF) or `none` (dual encoder)."""

    trunk: Literal["text_queries_image", "none"] = "text_queries_image"
    depth: int = Field(6, ge=1)
    heads: int = Field(12, ge=1)
    norm: Literal["pre", "post"] = "post"
    dropout: float = Field(0.0, ge=0, lt=1)


class ModelConfig(Section):
    """trunk x visual embedder x text embedder; `embedding_dim` is the size of the shared space of both sides, null for
    none."""

    image_size: int = Field(224, ge=16)
    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    fusion: FusionConfig = FusionConfig()
    embedding_dim: int | None = Field(256, ge=8)
