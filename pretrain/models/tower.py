"""Either side alone: an encoder, with self-attention of our own over its tokens where configured.

Shapes: B items, N image tokens, L text tokens, D width.
"""

from typing import Any

from torch import Tensor, nn

from pretrain.models.blocks import SelfBlock, initialize
from pretrain.models.config import BlocksConfig, TextConfig, VisionConfig
from pretrain.models.interface import ImageInput, TextInput
from pretrain.models.masks import text_mask
from pretrain.models.packing import Packing
from pretrain.models.patches import PatchEmbedder
from pretrain.models.regions import RegionEmbedder
from pretrain.models.text import TextEncoder, pool_text
from pretrain.models.tokens import ImageTokens, masked_mean
from pretrain.models.vision import ImageEncoder

Embedder = ImageEncoder | PatchEmbedder | RegionEmbedder


def visual_embedder(config: VisionConfig, image_size: int) -> "Embedder | ImageTower":
    """What `config` describes.

    Raises:
        UserError: options that a backbone refuses, or weights that do not fit.
    """
    embedder = _embedder(config, image_size)
    if config.blocks is None and config.pooling == "own":
        return embedder
    return ImageTower(config, embedder)


class ImageTower(nn.Module):
    """An embedder, blocks over its tokens, and the choice of what stands for the image."""

    def __init__(self, config: VisionConfig, embedder: Embedder) -> None:
        super().__init__()
        self.pooling, self.embedder = config.pooling, embedder
        self.width, self.prefix, self.any_shape = embedder.width, embedder.prefix, embedder.any_shape
        self.pooled_width = embedder.pooled_width if config.pooling == "own" else embedder.width
        blocks = config.blocks or BlocksConfig()
        depth = blocks.depth if config.blocks else 0
        self.blocks = nn.ModuleList(SelfBlock(self.width, blocks.block) for _ in range(depth))
        self.final_norm = nn.LayerNorm(self.width, blocks.eps) if depth and blocks.norm == "pre" else nn.Identity()
        initialize(self.blocks)

    def share_norm(self, norm: nn.Module) -> None:
        assert isinstance(self.embedder, RegionEmbedder)
        self.embedder.share_norm(norm)

    def forward(self, image: ImageInput) -> ImageTokens:
        tokens_BND, mask_BN, pooled_BP = self.embedder(image)
        packing = Packing.of(mask_BN)
        x_PD = packing.pack(tokens_BND)
        for block in self.blocks:
            x_PD = block(x_PD, packing, packing.keys_B11T)
        tokens_BND = packing.pad(self.final_norm(x_PD))
        match self.pooling:
            case "own":
                return ImageTokens(tokens_BND, mask_BN, pooled_BP)
            case "first":
                return ImageTokens(tokens_BND, mask_BN, tokens_BND[:, 0])
            case "mean":
                return ImageTokens(tokens_BND, mask_BN, masked_mean(tokens_BND, mask_BN))

    def example(self) -> ImageInput:
        return self.embedder.example()


def _embedder(config: VisionConfig, image_size: int) -> Embedder:
    if config.region:
        return RegionEmbedder(config.region)
    if config.patch:
        return PatchEmbedder(config.patch, image_size, config.weights)
    return ImageEncoder(config, image_size)


def text_encoder(config: TextConfig, vocabulary: int) -> "TextEncoder | TextTower":
    """What `config` describes.

    Raises:
        UserError: options that transformers refuses, or weights that do not fit.
    """
    encoder = TextEncoder(config, vocabulary)
    return encoder if config.blocks is None else TextTower(config, config.blocks, encoder)


class TextTower(nn.Module):
    """A text encoder and blocks over its tokens."""

    def __init__(self, config: TextConfig, blocks: BlocksConfig, encoder: TextEncoder) -> None:
        super().__init__()
        self.pooling, self.encoder = config.pooling, encoder
        self.width, self.longest = encoder.width, encoder.longest
        self.blocks = nn.ModuleList(SelfBlock(self.width, blocks.block) for _ in range(blocks.depth))
        self.final_norm = nn.LayerNorm(self.width, blocks.eps) if blocks.norm == "pre" else nn.Identity()
        initialize(self.blocks)

    @property
    def bert(self) -> Any:
        return self.encoder.bert

    @property
    def word_embedding_VD(self) -> Tensor:
        return self.encoder.word_embedding_VD

    @property
    def embedding_norm(self) -> nn.Module:
        return self.encoder.embedding_norm

    def forward(self, text: TextInput, causal: bool = False) -> tuple[Tensor, Tensor]:
        """Tokens float [B, L, D] and pooled float [B, D]."""
        tokens_BLD, _ = self.encoder(text, causal)
        packing = Packing.of(text.mask_BL)
        x_PD, mask_B1LL = packing.pack(tokens_BLD), text_mask(packing, causal)
        for block in self.blocks:
            x_PD = block(x_PD, packing, mask_B1LL)
        tokens_BLD = packing.pad(self.final_norm(x_PD))
        return tokens_BLD, pool_text(tokens_BLD, text.mask_BL, self.pooling)
