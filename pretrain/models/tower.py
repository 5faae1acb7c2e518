"""The image side: a visual embedder, with self-attention of its own over the tokens where configured.

Shapes: B images, N tokens, D width.
"""

from torch import nn

from pretrain.models.blocks import SelfBlock, initialize
from pretrain.models.config import BlocksConfig, VisionConfig
from pretrain.models.interface import ImageInput
from pretrain.models.packing import Packing
from pretrain.models.patches import PatchEmbedder
from pretrain.models.regions import RegionEmbedder
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
        self.width, self.prefix = embedder.width, embedder.prefix
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
        return PatchEmbedder(config.patch, image_size)
    return ImageEncoder(config, image_size)
