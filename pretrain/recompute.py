"""Running a part of the model again in the backward in place of keeping what it computed (arXiv:1604.06174)."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop


def recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, which keeps its inputs alone and runs again in the backward, dropout replayed.

    It needs a tensor among its first arguments: from that it knows the device whose random state it must keep. It goes
    to its end in the backward too, since ZeRO 3 would not take parameters back if it stopped early.
    """

    def again(*arguments: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **options)
        with set_checkpoint_early_stop(False):
            return checkpoint(forward, *arguments, use_reentrant=False, **options)

    return again
