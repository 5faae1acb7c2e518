"""What a GPU does otherwise than a CPU, for planning on a machine without one.

Attention runs as one kernel, which keeps its inputs, its output and a row of sums; norms and softmaxes leave autocast.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pretrain.planning.trace import Trace

FULL = ("layer_norm", "group_norm", "softmax", "log_softmax")
"""What autocast computes in float32 on CUDA and in the lower precision on a CPU."""
ATTENTION = "scaled_dot_product_attention"


class AsOnGpu(TorchFunctionMode):
    """Runs a step on the CPU, as far as memory goes, as it would run on a GPU; adds to the products of `trace`."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self._call(func, *args, **(kwargs or {}))

    @contextmanager
    def again(self) -> Iterator[None]:
        """The same for what runs again in the backward, where torch asks no mode."""
        originals = {name: getattr(F, name) for name in (*FULL, ATTENTION)}
        try:
            for name, function in originals.items():
                setattr(F, name, partial(self._call, function))
            yield
        finally:
            for name, function in originals.items():
                setattr(F, name, function)

    def _call(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        name = getattr(func, "__name__", "")
        if name == ATTENTION:
            return _Attention.apply(self.trace, *(_lowered(x) for x in args[:3]))
        if name in FULL and torch.is_autocast_enabled("cpu"):
            args = tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)
        return func(*args, **kwargs)


def _lowered(x: Tensor) -> Tensor:
    return x.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else x


class _Attention(torch.autograd.Function):
    """The shapes and products of a fused kernel (arXiv:2205.14135), whose scores never exist as a whole."""

    @staticmethod
    def forward(ctx: Any, trace: Trace, q_BHLd: Tensor, k_BHSd: Tensor, v_BHSd: Tensor) -> Tensor:
        mixed_BHLd = torch.empty_like(q_BHLd)
        sums_BHL = q_BHLd.new_empty(q_BHLd.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(q_BHLd, k_BHSd, v_BHSd, mixed_BHLd, sums_BHL)
        ctx.trace, ctx.product = trace, 2 * q_BHLd.numel() * k_BHSd.shape[-2]
        trace.flops += 2 * ctx.product
        return mixed_BHLd

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Five products: the scores again, and two for each of the forward's."""
        ctx.trace.flops += 5 * ctx.product
        return (None, *(torch.empty_like(x) for x in ctx.saved_tensors[:3]))
