"""The trunk `first_added`: each token of either side plus the first of the other (LightningDOT, arXiv:2103.08784).

It has no layer, so that what the towers compute alone is nearly all there is: they can be searched by dot product.

Shapes: B pairs, L text tokens, N image tokens, D width.
"""

from torch import nn

from pretrain.models.config import FusionConfig
from pretrain.models.interface import Attention, Encoded, Fused, Memory
from pretrain.models.pooler import PairPooler
from shards.errors import UserError


class FirstAdded(nn.Module):
    """Both sides encoded -> the same tokens, with what the other side says of itself in one vector."""

    def __init__(self, config: FusionConfig, text_width: int, image_width: int) -> None:
        super().__init__()
        if text_width != image_width:
            raise UserError(
                f"`model.vision` yields width {image_width}; `first_added` needs that of the text, {text_width}"
            )
        self.pooler = PairPooler(config, text_width, image_width)

    def remember(self, image: Encoded) -> Memory:
        """The image as it was encoded."""
        return Memory(image.mask_BT, image.tokens_BTD)

    def forward(self, text: Encoded, memory: Memory, attention: Attention = "bidirectional") -> Fused:
        """Row i with row i."""
        if attention != "bidirectional":
            raise ValueError(f"`attention` (={attention}) must be bidirectional for first_added")
        assert memory.tokens_BND is not None
        text_BLD = text.tokens_BTD + memory.tokens_BND[:, :1]
        image_BND = memory.tokens_BND + text.tokens_BTD[:, :1]
        return Fused(text_BLD, image_BND, self.pooler(text_BLD, image_BND))
