"""Trunks: how the two modalities meet after each has been encoded alone."""

from collections.abc import Sequence

from torch import Tensor, nn

from pretrain.models.blocks import CrossBlock
from pretrain.models.config import FusionConfig
from pretrain.models.interface import Encoded, Memory


class TextQueriesImage(nn.Module):
    """Text tokens attend to each other and query the image tokens, layer by layer (ALBEF's multimodal encoder)."""

    def __init__(self, config: FusionConfig, text_width: int, image_width: int) -> None:
        super().__init__()
        self.blocks: Sequence[CrossBlock] = nn.ModuleList(  # type: ignore[assignment]  # it forgets what it holds
            CrossBlock(text_width, image_width, config.heads, config.dropout, config.norm) for _ in range(config.depth)
        )
        # Pre-norm leaves the residual stream unnormalised at the end; post-norm blocks end with a norm of their own.
        self.final_norm = nn.LayerNorm(text_width) if config.norm == "pre" else nn.Identity()

    def remember(self, image: Encoded) -> Memory:
        """The keys and values of all layers: they depend on the image alone, so each image pays for them once."""
        layers = [block.cross_attention.keys_and_values(image.tokens_BTD) for block in self.blocks]
        return Memory(layers, image.mask_BT)

    def forward(self, text: Encoded, memory: Memory) -> Tensor:
        """Row i with row i -> float [B, L, D]."""
        x_BLD = text.tokens_BTD
        for block, keys_and_values in zip(self.blocks, memory.layers, strict=True):
            x_BLD = block(x_BLD, text.mask_BT, keys_and_values, memory.mask_BN)
        return self.final_norm(x_BLD)
