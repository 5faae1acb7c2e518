"""Losses are taken in float32 or better, whatever the layers run in."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Loss = TypeVar("Loss", bound=Callable[..., Any])


def full(x: Tensor) -> Tensor:
    """`x` in float32 if it is of a lower precision, else unchanged (float64 in tests)."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def in_full_precision(loss: Loss) -> Loss:
    """Decorates a function of tensors: no autocast inside, and floating arguments given by place are made `full`.

    Under autocast a product of float32 features would be rounded to bfloat16 before the temperature divides it.
    """

    @functools.wraps(loss)
    def exact(*tensors: Any, **settings: Any) -> Any:
        device = next(x.device.type for x in tensors if isinstance(x, Tensor))
        with torch.autocast(device, enabled=False):
            return loss(*(_full_if_floating(x) for x in tensors), **settings)

    return exact  # type: ignore[return-value]


def _full_if_floating(x: Any) -> Any:
    return full(x) if isinstance(x, Tensor) and x.is_floating_point() else x
