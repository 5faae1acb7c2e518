"""Rank helpers that also work without a process group, and a gather that gradients flow through.

Convention for every loss: a rank returns `world * (sum over its own rows) / (global count)`. The engine averages
gradients over ranks, so the sum of what the ranks return, divided by the world size, is the loss of the global batch,
and so is the gradient, whatever the split (gathers included).
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    if world() > 1:
        dist.barrier()


def gather(local: Tensor) -> Tensor:
    """Concatenates the ranks' tensors along dim 0; each rank receives the gradient that all ranks send to its part."""
    return _Gather.apply(local) if world() > 1 else local


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum over ranks of a tensor that carries no gradient."""
    if world() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def global_mean(values_R: Tensor, counted_R: Tensor | None = None) -> Tensor:
    """This rank's part of the mean over the rows of all ranks, by the convention above.

    Args:
        values_R: float [R, ...], one value (or several, all of them averaged) a row.
        counted_R: bool or float [R], the rows that count, or their weights; None counts all.

    Returns:
        A float scalar; 0 where no rank has a row that counts.
    """
    if counted_R is None:
        counted_R = torch.ones(len(values_R), device=values_R.device, dtype=values_R.dtype)
    per_row_R = values_R.flatten(1).mean(1) if values_R.ndim > 1 else values_R
    weights_R = counted_R.to(per_row_R.dtype)
    total = sum_over_ranks(weights_R.detach().sum())
    return world() * (per_row_R * weights_R).sum() / torch.where(total > 0, total, 1)


def max_over_ranks(value: int) -> int:
    """The largest of the ranks' values."""
    if world() == 1:
        return value
    tensor = torch.tensor(value, device=collective_device())
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor)


def any_rank(condition: bool) -> bool:
    """Whether the condition holds on any rank; every rank calls it and gets the same answer."""
    return bool(sum_over_ranks(torch.tensor(float(condition), device=collective_device())) > 0)


def first_of_ranks(value: str | None) -> str | None:
    """What the first rank has that has anything; every rank calls it and gets the same answer."""
    everywhere = [value] * world()
    if world() > 1:
        dist.all_gather_object(everywhere, value)
    return next((found for found in everywhere if found is not None), None)


def collective_device() -> torch.device:
    """Where the process group can reduce: this rank's GPU under NCCL, else the CPU."""
    return torch.device("cuda" if dist.is_initialized() and dist.get_backend() == "nccl" else "cpu")


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        ctx.rows = local.shape[0]
        parts = [torch.empty_like(local) for _ in range(world())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous()
        dist.all_reduce(total)
        return total[rank() * ctx.rows : (rank() + 1) * ctx.rows]
