"""Named tensors that share a batch dimension: picking, moving, splitting and joining them together."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor


class Rows:
    """A frozen dataclass of tensors (or None, or nested sequences of tensors) whose first dimension is the batch."""

    def rows(self, index: slice | Tensor) -> Self:
        """The items that `index` picks, a slice or int64 positions; repeated where it repeats."""
        if isinstance(index, slice):
            return self.each(lambda value: value[index])
        return self.each(lambda value: value.index_select(0, index))  # its backward adds whole rows

    def split(self, parts: int) -> list[Self]:
        """The reverse of `concatenate` for parts of the same size."""
        if parts == 1:
            return [self]
        rows = len(getattr(self, fields(self)[0].name)) // parts  # type: ignore[arg-type]
        return [self.rows(slice(part * rows, (part + 1) * rows)) for part in range(parts)]

    def to(self, device: torch.device | str) -> Self:
        return self.each(lambda value: value.to(device, non_blocking=True))

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """One after the other along the batch, padded with zeros to the longest."""
        if len(parts) == 1:
            return parts[0]
        names = [field.name for field in fields(parts[0])]  # type: ignore[arg-type]  # subclasses are dataclasses
        return replace(
            parts[0],  # type: ignore[type-var]
            **{name: _map(_join, *(getattr(part, name) for part in parts)) for name in names},
        )

    def each(self, function: Callable[[Tensor], Tensor]) -> Self:
        """With `function` of every tensor in its place."""
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]
        return replace(self, **{name: _map(function, getattr(self, name)) for name in names})  # type: ignore[type-var]


def _map(function: Callable[..., Any], *values: Any) -> Any:
    """Applies `function` to the tensors at the same place of nested sequences; None stays None."""
    if any(value is None for value in values):
        assert all(value is None for value in values), "parts differ in which tensors they have"
        return None
    if isinstance(values[0], Tensor):
        return function(*values)
    return [tuple(_map(function, *inner) for inner in zip(*outer, strict=True)) for outer in zip(*values, strict=True)]


def _join(*tensors: Tensor) -> Tensor:
    sizes = {dim: max(tensor.shape[dim] for tensor in tensors) for dim in range(1, tensors[0].ndim)}
    return torch.cat([_pad(tensor, sizes) for tensor in tensors])


def _pad(tensor: Tensor, sizes: dict[int, int]) -> Tensor:
    missing = [(0, sizes.get(dim, size) - size) for dim, size in enumerate(tensor.shape)]
    if all(after == 0 for _, after in missing):
        return tensor
    return F.pad(tensor, [amount for pair in reversed(missing) for amount in pair])
