"""Losses are taken in float32 or better, whatever the layers run in."""

import torch
from torch import Tensor


def full(x: Tensor) -> Tensor:
    """`x` in float32 if it is of a lower precision, else unchanged (float64 in tests)."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
