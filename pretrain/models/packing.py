"""Padded batches without their padding: layers that look at each token alone see the tokens that are there.

    padded [B, T, D] -> pack -> [P, D] -> linear layers, norms, activations -> pad for the attention -> pack -> ...

Only the attention needs to know which tokens belong together; it gets them padded and masked, which costs little
beside the layers around it.

Shapes: B items, T places, P tokens that are there, R = B * T, D width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Packing:
    """Which places of a padded batch hold a token.

    Attributes:
        items, places: B and T.
        place_P: int64 [P], where each token stands in the flattened batch, in ascending order; None where every place
            holds one.
        mask_BT: bool [B, T], the same as a mask.
    """

    items: int
    places: int
    place_P: Tensor | None
    mask_BT: Tensor

    @staticmethod
    def of(mask_BT: Tensor) -> "Packing":
        """The packing of the places that are True."""
        items, places = mask_BT.shape
        if mask_BT.is_meta:  # shapes without values: as if nothing were padded
            return Packing(items, places, None, mask_BT)
        place_P = mask_BT.flatten().nonzero()[:, 0]  # host sync here
        return Packing(items, places, None if len(place_P) == items * places else place_P, mask_BT)

    @property
    def keys_B11T(self) -> Tensor | None:
        """What all queries may look at, bool [B, 1, 1, T]; None where that is everything."""
        return None if self.place_P is None else self.mask_BT[:, None, None]

    def pack(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [P, D]: the tokens that are there, one item after the other."""
        x_RD = x_BTD.flatten(0, 1)
        return x_RD if self.place_P is None else take(x_RD, self.place_P)

    def pad(self, x_PD: Tensor) -> Tensor:
        """[P, D] -> [B, T, D], the reverse of `pack`; zeros where there is no token."""
        if self.place_P is not None:
            x_PD = put(x_PD, self.place_P, self.items * self.places)
        return x_PD.unflatten(0, (self.items, self.places))

    def choose(self, values_BT: Tensor) -> Tensor:
        """[B, T] -> [P]: of one number for each place, those of the tokens that are there."""
        return values_BT.flatten() if self.place_P is None else values_BT.flatten()[self.place_P]


@dataclass(frozen=True)
class Narrow:
    """Some of the tokens of a packing, for a layer whose other outputs nobody reads.

    Attributes:
        keep_Q: int64 [Q], which of the P packed tokens stay, in ascending order.
        queries: Where they stand when each item's are moved together, for the attention.
        kept: Where they stand among all places, for what comes out in the end.
    """

    keep_Q: Tensor
    queries: Packing
    kept: Packing

    @staticmethod
    def of(packing: Packing, keep_BT: Tensor) -> "Narrow":
        """Those of the packing that are True in `keep_BT`, bool [B, T]."""
        keep_BT = keep_BT & packing.mask_BT
        most = int(keep_BT.sum(1).max())  # host sync here
        moved_BM = torch.arange(most, device=keep_BT.device) < keep_BT.sum(1, keepdim=True)
        keep_Q = packing.choose(keep_BT).nonzero()[:, 0]
        return Narrow(keep_Q, Packing.of(moved_BM), Packing.of(keep_BT))


def at(x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """`x_BTD[mask_BT]`, float [P, D], with a backward that copies rows where indexing would add them one by one."""
    return Packing.of(mask_BT).pack(x_BTD)


def take(x_RD: Tensor, place_P: Tensor) -> Tensor:
    """`x_RD[place_P]`, float [P, D], for places that are distinct: the gradient of each row goes back to its place."""
    return _Take.apply(x_RD, place_P)


def put(x_PD: Tensor, place_P: Tensor, rows: int) -> Tensor:
    """The reverse: float [R, D], the rows at distinct places among zeros."""
    return _Put.apply(x_PD, place_P, rows)


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RD: Tensor, place_P: Tensor) -> Tensor:
        ctx.save_for_backward(place_P)
        ctx.rows = len(x_RD)
        return x_RD.index_select(0, place_P)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (place_P,) = ctx.saved_tensors
        return _spread(gradients[0], place_P, ctx.rows), None


class _Put(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_PD: Tensor, place_P: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(place_P)
        return _spread(x_PD, place_P, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (place_P,) = ctx.saved_tensors
        return gradients[0].index_select(0, place_P), None, None


def _spread(x_PD: Tensor, place_P: Tensor, rows: int) -> Tensor:
    return x_PD.new_zeros(rows, *x_PD.shape[1:]).index_copy_(0, place_P, x_PD)
