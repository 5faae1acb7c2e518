"""Trunks: how the two modalities meet after each has been encoded alone."""

from collections.abc import Sequence

from torch import Tensor, nn

from pretrain.models.blocks import CrossBlock
from pretrain.models.config import FusionConfig
from pretrain.models.interface import Attention, Encoded, Fused, Memory
from pretrain.models.masks import keep_first, text_mask, unless_all
from pretrain.models.packing import Narrow, Packing
from pretrain.models.pooler import PairPooler


class TextQueriesImage(nn.Module):
    """Text tokens attend to each other and query the image tokens, layer by layer (ALBEF's multimodal encoder)."""

    def __init__(self, config: FusionConfig, text_width: int, image_width: int) -> None:
        super().__init__()
        self.blocks: Sequence[CrossBlock] = nn.ModuleList(  # type: ignore[assignment]  # it forgets what it holds
            CrossBlock(text_width, image_width, config.block) for _ in range(config.depth)
        )
        # Pre-norm leaves the residual stream unnormalised at the end; post-norm blocks end with a norm of their own.
        self.final_norm = nn.LayerNorm(text_width, config.eps) if config.norm == "pre" else nn.Identity()
        self.pooler = PairPooler(config, text_width, image_width)

    def remember(self, image: Encoded) -> Memory:
        """The keys and values of all layers: they depend on the image alone, so each image pays for them once."""
        packing = Packing.of(image.mask_BT)
        image_QC = packing.pack(image.tokens_BTD)
        layers = [block.cross_attention.keys_and_values(image_QC, packing) for block in self.blocks]
        return Memory(image.mask_BT, layers=layers)

    def read(self, tokens_BLD: Tensor, mask_BL: Tensor, causal: bool) -> Tensor:
        """The text alone, float [B, L, D]: every layer without its cross-attention."""
        packing = Packing.of(mask_BL)
        x_PD, mask_B1LL = packing.pack(tokens_BLD), text_mask(packing, causal)
        for block in self.blocks:
            x_PD = block(x_PD, packing, mask_B1LL)
        return packing.pad(self.final_norm(x_PD))

    def forward(self, text: Encoded, memory: Memory, attention: Attention = "bidirectional") -> Fused:
        """Row i with row i.

        Args:
            attention: `bidirectional`, or `causal` among the text tokens; all of them see the whole image.
        """
        if attention not in ("bidirectional", "causal"):
            raise ValueError(f"`attention` (={attention}) must be bidirectional or causal for text_queries_image")
        packing = Packing.of(text.mask_BT)
        mask_B1LL, mask_B11N = text_mask(packing, attention == "causal"), unless_all(memory.mask_BN)
        x_PD = packing.pack(text.tokens_BTD)
        narrow = None
        if text.read_BT is not None and attention == "bidirectional":
            narrow = Narrow.of(packing, keep_first(text.read_BT))
        for block, keys_and_values in zip(self.blocks, memory.layers, strict=True):
            last = narrow if block is self.blocks[-1] else None
            x_PD = block(x_PD, packing, mask_B1LL, keys_and_values, mask_B11N, last)
        text_BLD = (packing if narrow is None else narrow.kept).pad(self.final_norm(x_PD))
        return Fused(text_BLD, None, self.pooler(text_BLD, None))
