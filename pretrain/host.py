"""Copies in host memory: what is written in the background must not change while training goes on."""

import copy
from typing import Any, TypeVar

from torch import Tensor

Value = TypeVar("Value")


def on_host(value: Value) -> Value:
    """A copy whose tensors are contiguous and on the CPU, whatever it is nested in."""
    return _copied(value)


def _copied(value: Any) -> Any:
    match value:
        case Tensor():
            return value.detach().to("cpu", copy=True).contiguous()
        case dict():
            made = copy.copy(value)  # keeps the type, and what DeepSpeed hangs on it
            made.update({key: _copied(item) for key, item in value.items()})
            return made
        case list() | tuple():
            return type(value)(_copied(item) for item in value)
    return copy.deepcopy(value)
