"""The trunk `co_attention`: two streams that query each other at chosen places (ViLBERT, LXMERT, METER).

Shapes: B pairs, L text tokens, N image tokens, D text width, C image width.
"""

from itertools import chain
from typing import Literal

from torch import Tensor, nn

from pretrain.models.blocks import Attention, Block, BlockShape, FeedForward, SelfBlock, initialize, run
from pretrain.models.config import CoAttentionConfig, FusionConfig
from pretrain.models.interface import Attention as AttentionPolicy
from pretrain.models.interface import Encoded, Fused, Memory
from pretrain.models.masks import text_mask
from pretrain.models.pooler import PairPooler

Step = Literal["self", "cross", "feed"]
Streams = tuple[Tensor, Tensor]


class Side(Block):
    """One modality's part of a bridge: the residual layers of `order`."""

    def __init__(self, width: int, other: int, shape: BlockShape, config: CoAttentionConfig) -> None:
        super().__init__()
        self.order, heads = config.order, config.heads or shape.heads
        has_self = "self" in self.order
        self.self_attention = Attention(width, width, shape.heads, shape.dropout) if has_self else None
        self.cross_attention = Attention(width, other, heads, shape.dropout, config.width)
        self.feed_forward = FeedForward(width, shape)
        self._add_norms(width, shape, len(self.order))

    def share_cross(self, other: "Side") -> None:
        """From now on this side attends to the other with the other's own layer and norm (LXMERT)."""
        place = self.order.index("cross")
        self.cross_attention, self.norms[place] = other.cross_attention, other.norms[place]

    def step(self, place: int, x_BLD: Tensor, mask_B1LL: Tensor, other_BSC: Tensor, mask_B11S: Tensor) -> Tensor:
        """The residual layer number `place`; `other_BSC` is the other modality as it entered the bridge."""
        match self.order[place]:
            case "self":
                assert self.self_attention is not None
                attention, keys, mask = self.self_attention, None, mask_B1LL
            case "cross":
                attention, keys, mask = self.cross_attention, other_BSC, mask_B11S
            case "feed":
                return self._residual(place, x_BLD, self.feed_forward)

        def attend(x_BLD: Tensor) -> Tensor:
            return attention(x_BLD, attention.keys_and_values(x_BLD if keys is None else keys), mask)

        return self._residual(place, x_BLD, attend)


class Bridge(nn.Module):
    """Both sides at once; each looks at the other as it was before the bridge."""

    def __init__(
        self, widths: tuple[int, int], shapes: tuple[BlockShape, BlockShape], config: CoAttentionConfig
    ) -> None:
        super().__init__()
        self.text = Side(widths[0], widths[1], shapes[0], config)
        self.image = Side(widths[1], widths[0], shapes[1], config)
        if config.shared:
            self.image.share_cross(self.text)

    def forward(self, text_BLD: Tensor, image_BNC: Tensor, mask_B11L: Tensor, mask_B11N: Tensor) -> Streams:
        text_before, image_before = text_BLD, image_BNC
        for place in range(len(self.text.order)):
            text_BLD = self.text.step(place, text_BLD, mask_B11L, image_before, mask_B11N)
            image_BNC = self.image.step(place, image_BNC, mask_B11N, text_before, mask_B11L)
        return text_BLD, image_BNC


class CoAttention(nn.Module):
    """Text-only layers, image-only layers and bridges in the order of `CoAttentionConfig.placement`."""

    def __init__(self, config: FusionConfig, text_width: int, image_width: int) -> None:
        super().__init__()
        co = config.co_attention
        shapes = (config.block, co.image_block(config.block))
        self.placement = co.steps(config.depth)
        made = {
            "text": lambda: SelfBlock(text_width, shapes[0]),
            "image": lambda: SelfBlock(image_width, shapes[1]),
            "cross": lambda: Bridge((text_width, image_width), shapes, co),
        }
        self.blocks = nn.ModuleList(made[kind]() for kind in self.placement)
        self.types = nn.Embedding(2, text_width) if config.types else None
        pre = config.norm == "pre"
        self.text_norm = nn.LayerNorm(text_width, config.eps) if pre else nn.Identity()
        self.image_norm = nn.LayerNorm(image_width, config.eps) if pre else nn.Identity()
        self.pooler = PairPooler(config, text_width, image_width)
        self.recompute = config.recompute
        initialize(self)

    def remember(self, image: Encoded) -> Memory:
        """The image behind the layers that come before it meets the text."""
        image_BNC = image.tokens_BTD if self.types is None else image.tokens_BTD + self.types.weight[1]
        for kind, block in self._alone():
            if kind == "image":
                image_BNC = run(block, self.recompute, image_BNC, image.mask_BT[:, None, None])
        return Memory(image.mask_BT, image_BNC)

    def forward(self, text: Encoded, memory: Memory, attention: AttentionPolicy = "bidirectional") -> Fused:
        """Row i with row i."""
        if attention != "bidirectional":
            raise ValueError(f"`attention` (={attention}) must be bidirectional for co_attention")
        assert memory.tokens_BND is not None
        text_BLD = text.tokens_BTD if self.types is None else text.tokens_BTD + self.types.weight[0]
        image_BNC = memory.tokens_BND
        mask_B11L, mask_B11N = text_mask(text.mask_BT, causal=False), memory.mask_BN[:, None, None]
        alone = [(kind, block) for kind, block in self._alone() if kind == "text"]
        for kind, block in chain(alone, self._together()):
            match kind:
                case "text":
                    text_BLD = run(block, self.recompute, text_BLD, mask_B11L)
                case "image":
                    image_BNC = run(block, self.recompute, image_BNC, mask_B11N)
                case "cross":
                    text_BLD, image_BNC = run(block, self.recompute, text_BLD, image_BNC, mask_B11L, mask_B11N)
        text_BLD, image_BNC = self.text_norm(text_BLD), self.image_norm(image_BNC)
        return Fused(text_BLD, image_BNC, self.pooler(text_BLD, image_BNC))

    def _alone(self) -> list[tuple[str, nn.Module]]:
        """What comes before the first bridge."""
        return list(zip(self.placement, self.blocks, strict=True))[: self._first_bridge()]

    def _together(self) -> list[tuple[str, nn.Module]]:
        return list(zip(self.placement, self.blocks, strict=True))[self._first_bridge() :]

    def _first_bridge(self) -> int:
        return self.placement.index("cross") if "cross" in self.placement else len(self.placement)
