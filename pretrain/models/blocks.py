"""Transformer blocks in which one modality queries another (ALBEF, arXiv:2107.07651, section 3.1).

Shapes: B items, L query tokens, S key tokens, D query width, C key width, H heads.
"""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from shards.errors import UserError

Norm = Literal["pre", "post"]


class Attention(nn.Module):
    """Scaled-dot-product attention from queries of width D to keys of width C."""

    def __init__(self, width: int, key_width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"`model.fusion.heads` (={heads}) must divide the width of the text encoder (={width})")
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(key_width, width)
        self.value = nn.Linear(key_width, width)
        self.out = nn.Linear(width, width)

    def keys_and_values(self, keys_BSC: Tensor) -> tuple[Tensor, Tensor]:
        """What does not depend on the queries: two float [B, H, S, D / H]."""
        return self._split(self.key(keys_BSC)), self._split(self.value(keys_BSC))

    def forward(self, x_BLD: Tensor, keys_and_values: tuple[Tensor, Tensor], mask_B1LS: Tensor) -> Tensor:
        """Attends from `x_BLD` where `mask_B1LS` is True (size 1 where all queries see the same); float [B, L, D]."""
        q_BHLd, (k_BHSd, v_BHSd) = self._split(self.query(x_BLD)), keys_and_values
        dropout = self.dropout if self.training else 0.0
        mixed_BHLd = F.scaled_dot_product_attention(q_BHLd, k_BHSd, v_BHSd, mask_B1LS, dropout)
        return self.out(mixed_BHLd.transpose(1, 2).flatten(2))

    def _split(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Sequential):
    """Two linear layers with GELU, four times as wide inside."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width))


class CrossBlock(nn.Module):
    """Self-attention, cross-attention to the other modality, feed-forward; each a residual with its own LayerNorm."""

    def __init__(self, width: int, key_width: int, heads: int, dropout: float, norm: Norm) -> None:
        super().__init__()
        self.norm = norm
        self.self_attention = Attention(width, width, heads, dropout)
        self.cross_attention = Attention(width, key_width, heads, dropout)
        self.feed_forward = FeedForward(width, dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.drop = nn.Dropout(dropout)

    def forward(self, x_BLD: Tensor, mask_B1LL: Tensor, other: tuple[Tensor, Tensor], mask_B1LS: Tensor) -> Tensor:
        """`other` is `cross_attention.keys_and_values` of the other modality, `mask_B1LS` what is there of it."""

        def attend(x_BLD: Tensor) -> Tensor:
            return self.self_attention(x_BLD, self.self_attention.keys_and_values(x_BLD), mask_B1LL)

        x_BLD = self._residual(0, x_BLD, attend)
        x_BLD = self._residual(1, x_BLD, lambda x_BLD: self.cross_attention(x_BLD, other, mask_B1LS))
        return self._residual(2, x_BLD, self.feed_forward)

    def _residual(self, index: int, x_BLD: Tensor, layer: Callable[[Tensor], Tensor]) -> Tensor:
        norm = self.norms[index]
        if self.norm == "pre":
            return x_BLD + self.drop(layer(norm(x_BLD)))
        return norm(x_BLD + self.drop(layer(x_BLD)))
