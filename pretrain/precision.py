"""Layers multiply in the configured precision; weights stay float32, and losses are taken in float32 or better."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What `engine.precision` lets layers multiply in."""

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


class LossScale:
    """The factor that keeps small gradients above float16's smallest number (arXiv:1710.03740, section 3.2).

    A step whose gradient overflowed is skipped and halves it; `patience` steps without one double it.
    """

    def __init__(self, value: float = 2.0**16, patience: int = 2000) -> None:
        self.value, self.patience, self.good = value, patience, 0

    def update(self, moved: bool) -> None:
        """Takes notice of a step that was taken, or skipped."""
        self.good = self.good + 1 if moved else 0
        if not moved:
            self.value /= 2
        elif self.good % self.patience == 0:
            self.value *= 2

    @property
    def exhausted(self) -> bool:
        """Whether so many steps were skipped that the scale cannot be to blame."""
        return self.value < 1

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value, "good": self.good}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.value, self.good = state["value"], int(state["good"])
