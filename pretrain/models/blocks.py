"""Transformer blocks: tokens attend to each other, and may query another modality (ALBEF, arXiv:2107.07651).

Blocks compute with packed tokens (`pretrain.models.packing`).

Shapes: B items, L query tokens, S key tokens, P query tokens that are there, Q key tokens that are there, D query
width, C key width, H heads, d width of a head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.models.packing import Narrow, Packing, put, take
from shards.errors import UserError

KeysAndValues = tuple[Tensor, Tensor]
Norm = Literal["pre", "post"]
Activation = Literal["gelu", "quick_gelu", "relu"]


@dataclass(frozen=True)
class BlockShape:
    """What blocks of one stack share.

    Attributes:
        hidden: Width inside the feed-forward; None is four times the block's.
        eps: Of the LayerNorms.
    """

    heads: int
    dropout: float = 0.0
    norm: Norm = "post"
    hidden: int | None = None
    activation: Activation = "gelu"
    eps: float = 1e-5


class QuickGELU(nn.Module):
    """CLIP's activation (arXiv:2103.00020, official code): x * sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {"gelu": nn.GELU, "quick_gelu": QuickGELU, "relu": nn.ReLU}


class Attention(nn.Module):
    """Scaled-dot-product attention from queries of width D to keys of width C.

    Args:
        inner: Width in which queries and keys meet; None is that of the queries.
    """

    def __init__(self, width: int, key_width: int, heads: int, dropout: float = 0.0, inner: int | None = None) -> None:
        super().__init__()
        inner = inner or width
        if inner % heads:
            raise UserError(f"`model.fusion.heads` (={heads}) must divide the width of the text encoder (={inner})")
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, inner)
        self.key = nn.Linear(key_width, inner)
        self.value = nn.Linear(key_width, inner)
        self.out = nn.Linear(inner, width)

    def keys_and_values(self, keys_QC: Tensor, packing: Packing) -> KeysAndValues:
        """What does not depend on the queries: two float [B, H, S, d], of keys packed by `packing`."""
        return self._split(self.key(keys_QC), packing), self._split(self.value(keys_QC), packing)

    def forward(
        self, x_PD: Tensor, packing: Packing, keys_and_values: KeysAndValues, mask_B1LS: Tensor | None
    ) -> Tensor:
        """Attends from `x_PD`, packed by `packing`, where `mask_B1LS` is True (size 1 where all queries see the same,
        None where they see everything); float [P, D]."""
        q_BHLd, (k_BHSd, v_BHSd) = self._split(self.query(x_PD), packing), keys_and_values
        dropout = self.dropout if self.training else 0.0
        mixed_BHLd = F.scaled_dot_product_attention(q_BHLd, k_BHSd, v_BHSd, mask_B1LS, dropout)
        return self.out(packing.pack(mixed_BHLd.transpose(1, 2).flatten(2)))

    def _split(self, x_PD: Tensor, packing: Packing) -> Tensor:
        return packing.pad(x_PD).unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Sequential):
    """Two linear layers, wider inside."""

    def __init__(self, width: int, shape: BlockShape) -> None:
        hidden = shape.hidden or 4 * width
        activation = ACTIVATIONS[shape.activation]()
        super().__init__(nn.Linear(width, hidden), activation, nn.Dropout(shape.dropout), nn.Linear(hidden, width))


class Block(nn.Module):
    """Residual layers, each with its own LayerNorm before the layer (`pre`) or after the sum (`post`)."""

    norms: nn.ModuleList

    def _add_norms(self, width: int, shape: BlockShape, layers: int) -> None:
        self.norm = shape.norm
        self.norms = nn.ModuleList(nn.LayerNorm(width, shape.eps) for _ in range(layers))
        self.drop = nn.Dropout(shape.dropout)

    def _residual(self, index: int, x_PD: Tensor, layer: Callable[[Tensor], Tensor]) -> Tensor:
        norm = self.norms[index]
        if self.norm == "pre":
            return x_PD + self.drop(layer(norm(x_PD)))
        return norm(x_PD + self.drop(layer(x_PD)))

    def _attend(
        self, x_PD: Tensor, attention: Attention, packing: Packing, mask_B1TT: Tensor | None, narrow: Narrow | None
    ) -> Tensor:
        """The residual layer of self-attention, which comes first; float [Q, D] of the tokens that `narrow` keeps."""
        norm = self.norms[0]
        y_PD = norm(x_PD) if self.norm == "pre" else x_PD
        keys_and_values = attention.keys_and_values(y_PD, packing)
        if narrow is not None:
            x_PD, y_PD = (take(value, narrow.keep_Q) for value in (x_PD, y_PD))
        queries = packing if narrow is None else narrow.queries
        x_PD = x_PD + self.drop(attention(y_PD, queries, keys_and_values, mask_B1TT))
        return x_PD if self.norm == "pre" else norm(x_PD)


class SelfBlock(Block):
    """Self-attention and feed-forward.

    Args:
        multiway: Image tokens have a feed-forward of their own (VLMo, arXiv:2111.02358).
    """

    def __init__(self, width: int, shape: BlockShape, multiway: bool = False) -> None:
        super().__init__()
        self.self_attention = Attention(width, width, shape.heads, shape.dropout)
        self.feed_forward = FeedForward(width, shape)
        self.image_feed_forward = FeedForward(width, shape) if multiway else None
        self._add_norms(width, shape, 3 if multiway else 2)

    def forward(
        self,
        x_PD: Tensor,
        packing: Packing,
        mask_B1TT: Tensor | None,
        sides: tuple[Tensor, Tensor] | None = None,
        narrow: Narrow | None = None,
    ) -> Tensor:
        """float [P, D], or [Q, D] of the tokens that `narrow` keeps (`mask_B1TT` is then the same for all queries).

        Args:
            sides: int64 places of the text tokens and of the image tokens among the P, which multiway blocks alone
                ask, whose tokens all stay.
        """
        x_PD = self._attend(x_PD, self.self_attention, packing, mask_B1TT, narrow)
        if self.image_feed_forward is None:
            return self._residual(1, x_PD, self.feed_forward)
        assert sides is not None, "a multiway block must know which tokens are text"
        text_P, image_P = sides
        text_XD = self._residual(1, take(x_PD, text_P), self.feed_forward)
        image_YD = self._residual(2, take(x_PD, image_P), self.image_feed_forward)
        return put(text_XD, text_P, len(x_PD)) + put(image_YD, image_P, len(x_PD))


class CrossBlock(Block):
    """Self-attention, cross-attention to the other modality, feed-forward."""

    def __init__(self, width: int, key_width: int, shape: BlockShape) -> None:
        super().__init__()
        self.self_attention = Attention(width, width, shape.heads, shape.dropout)
        self.cross_attention = Attention(width, key_width, shape.heads, shape.dropout)
        self.feed_forward = FeedForward(width, shape)
        self._add_norms(width, shape, 3)

    def forward(
        self,
        x_PD: Tensor,
        packing: Packing,
        mask_B1LL: Tensor | None,
        other: KeysAndValues | None = None,
        mask_B1LS: Tensor | None = None,
        narrow: Narrow | None = None,
    ) -> Tensor:
        """`other` is `cross_attention.keys_and_values` of the other modality, `mask_B1LS` what is there of it (None
        where all is); without `other` the block leaves the cross-attention out. `narrow` as in `SelfBlock`."""
        x_PD = self._attend(x_PD, self.self_attention, packing, mask_B1LL, narrow)
        queries = packing if narrow is None else narrow.queries
        if other is not None:
            x_PD = self._residual(1, x_PD, lambda x_PD: self.cross_attention(x_PD, queries, other, mask_B1LS))
        return self._residual(2, x_PD, self.feed_forward)


def initialize(module: nn.Module) -> None:
    """BERT's initial weights (arXiv:1810.04805): normal with deviation 0.02, biases 0, norms left alone."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding | nn.Conv2d):
            nn.init.normal_(part.weight, std=0.02)
        if isinstance(part, nn.Linear | nn.Conv2d) and part.bias is not None:
            nn.init.zeros_(part.bias)
