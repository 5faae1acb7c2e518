"""Trunks: how the two modalities meet after each has been encoded alone."""

from collections.abc import Sequence

from torch import Tensor, nn

from pretrain.models.blocks import CrossBlock
from pretrain.models.config import FusionConfig
from pretrain.models.interface import Attention, Encoded, Fused, Memory


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
        return Memory(image.mask_BT, layers=layers)

    def forward(self, text: Encoded, memory: Memory, attention: Attention = "bidirectional") -> Fused:
        """Row i with row i.

        Args:
            attention: `bidirectional`, or `causal` among the text tokens; all of them see the whole image.
        """
        if attention not in ("bidirectional", "causal"):
            raise ValueError(f"`attention` (={attention}) must be bidirectional or causal for text_queries_image")
        mask_B1LL = self_attention_mask(text.mask_BT, causal=attention == "causal")
        x_BLD = text.tokens_BTD
        for block, keys_and_values in zip(self.blocks, memory.layers, strict=True):
            x_BLD = block(x_BLD, mask_B1LL, keys_and_values, memory.mask_BN[:, None, None, :])
        text_BLD = self.final_norm(x_BLD)
        return Fused(text_BLD, None, text_BLD[:, 0])


def self_attention_mask(mask_BL: Tensor, causal: bool) -> Tensor:
    """bool [B, 1, 1 or L, L], True where a query may look at a key."""
    mask_B11L = mask_BL[:, None, None, :]
    length = mask_BL.shape[1]
    return mask_B11L & mask_BL.new_ones(length, length).tril() if causal else mask_B11L
