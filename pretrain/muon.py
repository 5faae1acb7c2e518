"""Muon (Jordan 2024; arXiv:2502.16982): momentum whose matrices are made orthogonal, and AdamW for all else.

A matrix of rank r, or a kernel as one row per output channel, moves by the nearest orthogonal matrix to its momentum,
scaled so that its elements move as far as AdamW's do (section 2.2 of the paper): learning rate and decay mean the same
for both kinds of group.

Shapes: R rows, C columns.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic that drives singular values towards 1 (Jordan 2024)."""
MOMENTUM = 0.95
ITERATIONS = 5
RMS = 0.2
"""Of an update's elements at learning rate 1, as AdamW's have."""
EPSILON = 1e-8


class Muon(torch.optim.Optimizer):
    """Groups with `matrices` True hold parameters of two or more dimensions.

    Args:
        groups: Each with `params`, `matrices`, and what it sets in place of the defaults.
        momentum: Of the matrices; Nesterov's.
        betas: Of AdamW.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        momentum: float = MOMENTUM,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay, "matrices": False}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # returns no loss
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                update = self._orthogonal if group["matrices"] else self._adaptive
                parameter.add_(update(parameter, group), alpha=-group["lr"])

    def _orthogonal(self, parameter: nn.Parameter, group: dict[str, Any]) -> Tensor:
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = state["momentum_buffer"]
        buffer.lerp_(gradient, 1 - group["momentum"])
        ahead_RC = gradient.lerp(buffer, group["momentum"]).flatten(1)
        return orthogonal(ahead_RC).reshape(parameter.shape) * (RMS * math.sqrt(max(ahead_RC.shape)))

    def _adaptive(self, parameter: nn.Parameter, group: dict[str, Any]) -> Tensor:
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if "exp_avg" not in state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["step"] = torch.tensor(0.0)
        mean, square, steps = state["exp_avg"], state["exp_avg_sq"], state["step"]
        steps += 1
        first, second = group["betas"]
        mean.lerp_(gradient, 1 - first)
        square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        deviation = (square / (1 - second ** steps.item())).sqrt_().add_(EPSILON)
        return mean / (1 - first ** steps.item()) / deviation


def orthogonal(matrix_RC: Tensor) -> Tensor:
    """About U V^T of the singular value decomposition U S V^T; singular values end between 0.7 and 1.2.

    Computed in bfloat16, which the iteration tolerates.
    """
    linear, cubic, quintic = NEWTON_SCHULZ
    rows, columns = matrix_RC.shape
    x = (matrix_RC if rows <= columns else matrix_RC.T).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = linear * x + (cubic * gram + quintic * gram @ gram) @ x
    return (x if rows <= columns else x.T).to(matrix_RC.dtype)
