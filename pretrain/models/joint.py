"""The trunk `joint`: text and image as one sequence that attends to itself (VisualBERT, UNITER, ViLT and their kin).

Shapes: B pairs, L text tokens, N image tokens, T = L + N, P tokens that are there, D width.
"""

import torch
from torch import Tensor, nn

from pretrain.models.blocks import SelfBlock, initialize
from pretrain.models.config import FusionConfig
from pretrain.models.interface import Attention, Encoded, Fused, Memory
from pretrain.models.masks import joint_mask, keep_first
from pretrain.models.packing import Narrow, Packing
from pretrain.models.pooler import PairPooler
from shards.errors import UserError


class Joint(nn.Module):
    """Both sides embedded -> both sides contextualised, under any attention policy."""

    def __init__(self, config: FusionConfig, text_width: int, image_width: int) -> None:
        super().__init__()
        if text_width != image_width:
            raise UserError(f"`model.vision` yields width {image_width}; `joint` needs that of the text, {text_width}")
        self.multiway = config.multiway
        self.image_norm = nn.LayerNorm(text_width, config.eps) if config.image_on_text else None
        self.types = nn.Embedding(2, text_width) if config.types else None
        self.blocks = nn.ModuleList(SelfBlock(text_width, config.block, config.multiway) for _ in range(config.depth))
        self.final_norm = nn.LayerNorm(text_width, config.eps) if config.norm == "pre" else nn.Identity()
        self.pooler = PairPooler(config, text_width, image_width)
        initialize(self)

    def remember(self, image: Encoded) -> Memory:
        """The embedded image: everything else depends on the text too."""
        return Memory(image.mask_BT, self._typed(image.tokens_BTD, 1))

    def forward(self, text: Encoded, memory: Memory, attention: Attention = "bidirectional") -> Fused:
        """Row i with row i."""
        assert memory.tokens_BND is not None
        texts = text.tokens_BTD.shape[1]
        text_BLD = self._typed(text.tokens_BTD, 0)
        if self.image_norm is not None:
            text_BLD = text_BLD + self.image_norm(memory.tokens_BND[:, :1])
        packing = Packing.of(torch.cat([text.mask_BT, memory.mask_BN], 1))
        x_PD = packing.pack(torch.cat([text_BLD, memory.tokens_BND], 1))
        mask_B1TT = packing.keys_B11T
        if attention != "bidirectional":
            mask_B1TT = joint_mask(text.mask_BT, memory.mask_BN, attention, text.prefix_BT)
        sides = _sides(packing, texts) if self.multiway else None
        narrow = None
        if text.read_BT is not None and attention == "bidirectional" and not self.multiway:
            image_BN = keep_first(torch.zeros_like(memory.mask_BN))  # some poolers read its first token
            narrow = Narrow.of(packing, torch.cat([keep_first(text.read_BT), image_BN], 1))
        for block in self.blocks:
            last = narrow if block is self.blocks[-1] else None
            x_PD = block(x_PD, packing, mask_B1TT, sides, last)
        x_BTD = (packing if narrow is None else narrow.kept).pad(self.final_norm(x_PD))
        text_BLD, image_BND = x_BTD[:, :texts], x_BTD[:, texts:]
        return Fused(text_BLD, image_BND, self.pooler(text_BLD, image_BND))

    def _typed(self, x_BTD: Tensor, modality: int) -> Tensor:
        return x_BTD if self.types is None else x_BTD + self.types.weight[modality]


def _sides(packing: Packing, texts: int) -> tuple[Tensor, Tensor]:
    """int64: which of the packed tokens are text, and which are of the image, behind the first `texts` places."""
    is_text_T = torch.arange(packing.places, device=packing.mask_BT.device) < texts
    is_text_P = packing.choose(is_text_T.expand(packing.items, -1))
    return is_text_P.nonzero()[:, 0], (~is_text_P).nonzero()[:, 0]
