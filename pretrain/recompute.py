"""Running a part of the model again in the backward in place of keeping what it computed (arXiv:1604.06174)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from pretrain.rows import Rows


def recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, which keeps its inputs alone and runs again in the backward, dropout replayed.

    It needs a tensor among its first arguments: from that it knows the device whose random state it must keep. It goes
    to its end in the backward too, since ZeRO 3 would not take parameters back if it stopped early.
    """

    def guarded(*arguments: Any, **options: Any) -> Any:
        output = forward(*arguments, **options)
        return output.each(_guarded) if isinstance(output, Rows) else tree_map_only(Tensor, _guarded, output)

    def again(*arguments: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **options)
        with set_checkpoint_early_stop(False):
            return checkpoint(guarded, *arguments, use_reentrant=False, **options)

    return again


class _RunAgainFirst(torch.autograd.Function):
    """The identity, whose backward asks for what it saved, so that the part runs again before any of its backward does.

    Else the backward of the part's last layer would ask first, when ZeRO 3 has fetched that layer's parameters for it;
    running the layer again would send them away, and its backward would find them empty.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        assert ctx.saved_tensors
        return gradients[0]


def _guarded(x: Tensor) -> Tensor:
    return _RunAgainFirst.apply(x) if x.requires_grad else x
