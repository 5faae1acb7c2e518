"""The composition: an image encoder, a text encoder, a shared space, and a trunk."""

import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.models.blocks import ACTIVATIONS
from pretrain.models.co_attention import CoAttention
from pretrain.models.config import ModelConfig
from pretrain.models.encoder_decoder import EncoderDecoder
from pretrain.models.first_added import FirstAdded
from pretrain.models.fusion import TextQueriesImage
from pretrain.models.initial import start_trunk
from pretrain.models.interface import Attention, Encoded, Fused, ImageInput, Memory, ModelShape, TextInput
from pretrain.models.joint import Joint
from pretrain.models.regions import RegionEmbedder
from pretrain.models.text import self_contained_text
from pretrain.models.tower import ImageTower, text_encoder, visual_embedder
from shards.errors import UserError

Trunk = Joint | CoAttention | TextQueriesImage | EncoderDecoder | FirstAdded


class DuoModel(nn.Module):
    """Satisfies `pretrain.models.interface.VisionLanguageModel`.

    Args:
        vocabulary: Number of tokens of the tokenizer.
    """

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        super().__init__()
        self.vision = visual_embedder(config.vision, config.image_size)
        self.text = text_encoder(config.text, vocabulary)
        if config.vision.region and config.vision.region.norm == "text":
            assert isinstance(self.vision, RegionEmbedder | ImageTower)
            self.vision.share_norm(self.text.embedding_norm)
        self.image_projection = _image_projection(self.vision.pooled_width, config)
        self.text_projection = _projection(self.text.width, config)
        self._shared_text = config.fusion.shared_text
        self.fusion = _trunk(config, self.text.width, self.vision.width)
        if config.fusion.weights and self.fusion is not None:
            start_trunk(self.fusion, config.fusion)
        self.shape = ModelShape(
            width=self.text.width,
            image_width=self.vision.width,
            pooled_width=self.text.width if self.fusion is None else self.fusion.pooler.width,
            vocabulary=len(self.word_embedding_VD),
            embedding_dim=config.embedding_dim,
            region_dim=config.vision.region.features if config.vision.region else None,
            image_prefix=self.vision.prefix,
            eps=config.fusion.eps,
        )

    @property
    def word_embedding_VD(self) -> Tensor:
        return self.text.word_embedding_VD

    def encode_image(self, image: ImageInput) -> Encoded:
        tokens_BND, mask_BN, pooled_BP = self.vision(image)
        return Encoded(tokens_BND, mask_BN, self._share(self.image_projection, pooled_BP))

    def encode_text(self, text: TextInput, causal: bool = False) -> Encoded:
        tokens_BLD, pooled_BD = self.pooled_text(text, causal)
        shared_BE = self._share(self.text_projection, pooled_BD)
        return Encoded(tokens_BLD, text.mask_BL, shared_BE, text.prefix_BL)

    def pooled_text(self, text: TextInput, causal: bool = False) -> tuple[Tensor, Tensor]:
        """Tokens float [B, L, D], and what stands for each text before it is projected, float [B, D]."""
        tokens_BLD, pooled_BD = self.text(text, causal)
        if self.reader is not None and self.shape.embedding_dim is not None:
            pooled_BD = self.reader.read(tokens_BLD, text.mask_BL, causal)[:, 0]
        return tokens_BLD, pooled_BD

    def remember(self, image: Encoded) -> Memory:
        return self._fusing().remember(image)

    def fuse(self, text: Encoded, memory: Memory, attention: Attention = "bidirectional") -> Fused:
        return self._fusing()(text, memory, attention)

    @property
    def reader(self) -> TextQueriesImage | None:
        """The trunk, where it is the text encoder too."""
        return self.fusion if isinstance(self.fusion, TextQueriesImage) and self._shared_text else None

    def _share(self, projection: nn.Module, pooled_BD: Tensor) -> Tensor | None:
        return None if self.shape.embedding_dim is None else F.normalize(projection(pooled_BD), dim=-1)

    def _fusing(self) -> Trunk:
        if self.fusion is None:
            raise ValueError("a model with `model.fusion.trunk` (=none) cannot fuse")
        return self.fusion


def self_contained(config: ModelConfig) -> ModelConfig:
    """The same composition with no outside weights, for a configuration that travels with its own.

    Raises:
        UserError: the folder that gives the text encoder's shape is not there.
    """
    vision = config.vision.model_copy(update={"weights": None})
    fusion = config.fusion.model_copy(update={"weights": None, "first_layer": 0})
    return config.model_copy(update={"vision": vision, "text": self_contained_text(config.text), "fusion": fusion})


def _projection(width: int, config: ModelConfig) -> nn.Module:
    if config.embedding_dim is None:
        return nn.Identity()
    between, last = config.projection, config.embedding_dim
    if between is None:
        return nn.Linear(width, last, bias=config.projection_bias)
    layers = [nn.Linear(width, between.hidden), ACTIVATIONS[between.activation]()]
    norm = [nn.LayerNorm(between.hidden, config.fusion.eps)] if between.norm else []
    return nn.Sequential(*layers, *norm, nn.Linear(between.hidden, last, bias=config.projection_bias))


def _image_projection(width: int, config: ModelConfig) -> nn.Module:
    if config.image_projection:
        return _projection(width, config)
    if config.embedding_dim not in (None, width):
        raise UserError(
            f"`model.embedding_dim` (={config.embedding_dim}) must be the width of the image's vector (={width}), "
            "because `model.image_projection` is false"
        )
    return nn.Identity()


def _trunk(config: ModelConfig, text_width: int, image_width: int) -> Trunk | None:
    match config.fusion.trunk:
        case "joint":
            return Joint(config.fusion, text_width, image_width)
        case "co_attention":
            return CoAttention(config.fusion, text_width, image_width)
        case "encoder_decoder":
            return EncoderDecoder(config.fusion, text_width, image_width)
        case "first_added":
            return FirstAdded(config.fusion, text_width, image_width)
        case "text_queries_image":
            return TextQueriesImage(config.fusion, text_width, image_width)
        case "none":
            return None
