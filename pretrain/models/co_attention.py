"""The trunk `co_attention`: two streams that query each other at chosen places (ViLBERT, LXMERT, METER).

Shapes: B pairs, L text tokens, N image tokens, P and Q of these that are there, D text width, C image width.
"""

from itertools import chain
from typing import Literal

from torch import Tensor, nn

from pretrain.models.blocks import Attention, Block, BlockShape, FeedForward, SelfBlock, initialize
from pretrain.models.config import CoAttentionConfig, FusionConfig
from pretrain.models.interface import Attention as AttentionPolicy
from pretrain.models.interface import Encoded, Fused, Memory
from pretrain.models.packing import Packing
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

    def step(self, place: int, x_PD: Tensor, packing: Packing, other_QC: Tensor, other: Packing) -> Tensor:
        """The residual layer number `place`; `other_QC` is the other modality as it entered the bridge."""
        match self.order[place]:
            case "self":
                assert self.self_attention is not None
                attention, keys, seen = self.self_attention, None, packing
            case "cross":
                attention, keys, seen = self.cross_attention, other_QC, other
            case "feed":
                return self._residual(place, x_PD, self.feed_forward)

        def attend(x_PD: Tensor) -> Tensor:
            keys_and_values = attention.keys_and_values(x_PD if keys is None else keys, seen)
            return attention(x_PD, packing, keys_and_values, seen.keys_B11T)

        return self._residual(place, x_PD, attend)


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

    def forward(self, text_PD: Tensor, image_QC: Tensor, texts: Packing, images: Packing) -> Streams:
        text_before, image_before = text_PD, image_QC
        for place in range(len(self.text.order)):
            text_PD = self.text.step(place, text_PD, texts, image_before, images)
            image_QC = self.image.step(place, image_QC, images, text_before, texts)
        return text_PD, image_QC


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
        initialize(self)

    def remember(self, image: Encoded) -> Memory:
        """The image behind the layers that come before it meets the text."""
        image_BNC = image.tokens_BTD if self.types is None else image.tokens_BTD + self.types.weight[1]
        packing = Packing.of(image.mask_BT)
        image_QC = packing.pack(image_BNC)
        for kind, block in self._alone():
            if kind == "image":
                image_QC = block(image_QC, packing, packing.keys_B11T)
        return Memory(image.mask_BT, packing.pad(image_QC))

    def forward(self, text: Encoded, memory: Memory, attention: AttentionPolicy = "bidirectional") -> Fused:
        """Row i with row i."""
        if attention != "bidirectional":
            raise ValueError(f"`attention` (={attention}) must be bidirectional for co_attention")
        assert memory.tokens_BND is not None
        text_BLD = text.tokens_BTD if self.types is None else text.tokens_BTD + self.types.weight[0]
        texts, images = Packing.of(text.mask_BT), Packing.of(memory.mask_BN)
        text_PD, image_QC = texts.pack(text_BLD), images.pack(memory.tokens_BND)
        alone = [(kind, block) for kind, block in self._alone() if kind == "text"]
        for kind, block in chain(alone, self._together()):
            match kind:
                case "text":
                    text_PD = block(text_PD, texts, texts.keys_B11T)
                case "image":
                    image_QC = block(image_QC, images, images.keys_B11T)
                case "cross":
                    text_PD, image_QC = block(text_PD, image_QC, texts, images)
        text_BLD, image_BNC = texts.pad(self.text_norm(text_PD)), images.pad(self.image_norm(image_QC))
        return Fused(text_BLD, image_BNC, self.pooler(text_BLD, image_BNC))

    def _alone(self) -> list[tuple[str, nn.Module]]:
        """What comes before the first bridge."""
        return list(zip(self.placement, self.blocks, strict=True))[: self._first_bridge()]

    def _together(self) -> list[tuple[str, nn.Module]]:
        return list(zip(self.placement, self.blocks, strict=True))[self._first_bridge() :]

    def _first_bridge(self) -> int:
        return self.placement.index("cross") if "cross" in self.placement else len(self.placement)
