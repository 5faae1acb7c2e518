"""Model FLOPs of a step, counted while it runs: what its matrix products cost, forward and backward.

The forward of a step goes through a mode that sees every product that torch is asked for, whatever the trunk, and
changes none. A product with `requires_grad` operands costs as much again in the backward for each of them, so frozen
parts and momentum towers count for what they are. What is computed again to save memory counts once (model FLOPs, not
hardware FLOPs: PaLM, arXiv:2204.02311, appendix B). Additions, norms and activations do not count.

ZeRO 3 puts a linear layer of its own in place of torch's, which says what it stands for (`counted_as`). Inside compiled
blocks nothing is seen: there one forward is counted that is not compiled, before the first step.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function

from pretrain.batch import Batch
from pretrain.config import EngineConfig
from pretrain.task import Task


class FlopMeter:
    """Counts one forward of a task per interval and choice of objectives, and lets it stand for those like it.

    Texts of different lengths make the steps of an interval differ a little.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._mode: ProductCount | None = None
        self._counted: dict[tuple[str, ...], int] = {}
        self._fresh: set[tuple[str, ...]] = set()
        self._handles = [
            task.register_forward_pre_hook(self._begin),
            task.register_forward_hook(self._finish, always_call=True),
        ]

    @property
    def step(self) -> int:
        """FLOPs of this rank's part of the step that was taken last."""
        return self._counted[self._task.active]

    def renew(self) -> None:
        """Counts again from here on."""
        self._fresh.clear()

    def close(self) -> None:
        """Leaves the task as it was."""
        for handle in self._handles:
            handle.remove()

    def _begin(self, task: torch.nn.Module, inputs: Any) -> None:
        if self._task.active not in self._fresh:
            self._mode = ProductCount()
            self._mode.__enter__()

    def _finish(self, task: torch.nn.Module, inputs: Any, output: Any) -> None:
        if self._mode:
            self._mode.__exit__(None, None, None)
            self._counted[self._task.active] = self._mode.flops
            self._fresh.add(self._task.active)
            self._mode = None


class KnownFlops:
    """What was counted before the first step stands for all steps."""

    def __init__(self, task: Task, flops: Mapping[tuple[str, ...], int]) -> None:
        self._task, self._flops = task, flops

    @property
    def step(self) -> int:
        return self._flops[self._task.active]

    def renew(self) -> None: ...

    def close(self) -> None: ...


def meter(task: Task, config: EngineConfig, known: Mapping[tuple[str, ...], int]) -> FlopMeter | KnownFlops | None:
    """What counts a run; None where products cannot be seen and none were counted before."""
    if not config.compile:
        return FlopMeter(task)
    return KnownFlops(task, known) if known else None


def count_uncompiled(task: Task, batch: Batch) -> int:
    """FLOPs of a step over `batch`, by a forward that compiles nothing and keeps nothing for a backward."""
    with (
        torch.compiler.set_stance("force_eager"),
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: None, lambda nothing: nothing),
        ProductCount() as count,
    ):
        task(batch)
    return count.flops


def counted_as(known: Callable[..., Tensor], linear: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`linear`, which `ProductCount` sees and counts as the function `known`."""

    @functools.wraps(linear)
    def seen(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if has_torch_function((input, weight)):
            return handle_torch_function(seen, (input, weight), input, weight, bias)
        return linear(input, weight, bias)

    seen.stands_for = known  # type: ignore[attr-defined]
    return seen


class ProductCount(TorchFunctionMode):
    """Adds up `flops` of the products that run inside it, with what their backward will cost."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if product := PRODUCTS.get(getattr(func, "stands_for", func)):
            self.flops += product(output, *args, **(kwargs or {}))
        return output


def _with_backward(forward: int, *operands: Tensor) -> int:
    """One product, and one more for the gradient of each operand that has one."""
    return forward * (1 + (sum(operand.requires_grad for operand in operands) if torch.is_grad_enabled() else 0))


def _matmul(output: Tensor, input: Tensor, other: Tensor, *_: Any, **__: Any) -> int:
    return _with_backward(2 * output.numel() * input.shape[-1], input, other)


def _linear(output: Tensor, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return _with_backward(2 * output.numel() * input.shape[-1], input, weight)


def _addmm(output: Tensor, bias: Tensor, input: Tensor, other: Tensor, **_: Any) -> int:
    return _matmul(output, input, other)


def _einsum(output: Tensor, equation: Any, *operands: Any) -> int:
    """A multiplication and an addition for each combination of the indices; only two operands with letters count."""
    if len(operands) != 2 or "..." in equation:
        return 0
    inputs = equation.replace(" ", "").partition("->")[0].replace(",", "")
    sizes = dict(zip(inputs, (*operands[0].shape, *operands[1].shape), strict=True))
    return _with_backward(2 * math.prod(sizes.values()), *operands)


def _reversed(output: Tensor, other: Tensor, input: Tensor) -> int:
    return _matmul(output, input, other)


def _convolution(output: Tensor, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return _with_backward(2 * output.numel() * weight[0].numel(), input, weight)


def _attention(output: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Two products: scores, and the weighted sum, whose weights have a gradient where query or key has."""
    scores = query.numel() // query.shape[-1] * key.shape[-2]
    weighted = _with_backward(2 * scores * value.shape[-1], query, value)
    return _with_backward(2 * scores * query.shape[-1], query, key) + weighted


PRODUCTS: dict[Any, Callable[..., int]] = {
    F.linear: _linear,
    F.conv1d: _convolution,
    F.conv2d: _convolution,
    F.scaled_dot_product_attention: _attention,
    torch.addmm: _addmm,
    torch.einsum: _einsum,
    Tensor.__rmatmul__: _reversed,
    **dict.fromkeys(
        (torch.matmul, torch.bmm, torch.mm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.mm), _matmul
    ),
}
