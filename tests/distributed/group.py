"""Not a test: functions run as the ranks of a gloo group, and losses differentiated as the engine would."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from pretrain import distributed

Found = dict[str, Tensor]


def over_ranks(world: int, folder: Path, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(*arguments)` returned on each rank; a function of a module, so that new processes find it."""
    folder.mkdir(exist_ok=True)
    mp.spawn(_rank, (world, str(folder), work, arguments), nprocs=world)
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


def _rank(rank: int, world: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.save(work(*arguments), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def rows_of_rank(whole: Tensor) -> Tensor:
    """This rank's equal, contiguous part."""
    each = len(whole) // distributed.world()
    return whole[distributed.rank() * each : (distributed.rank() + 1) * each]


def mean_over_ranks(value: Tensor) -> Tensor:
    return distributed.sum_over_ranks(value) / distributed.world()


def loss_and_gradients(
    loss: Callable[[Mapping[str, Tensor]], Tensor], rows: Mapping[str, Tensor], shared: Mapping[str, Tensor]
) -> Found:
    """Values and gradients of the global batch.

    Args:
        loss: Of tensors by name, by the convention of `pretrain.distributed`.
        rows: The global batch; each rank takes its part.
        shared: What every rank has, as a parameter.
    """
    local = {name: rows_of_rank(whole).clone() for name, whole in rows.items()} | dict(shared)
    leaves = {name: x.clone().requires_grad_() for name, x in local.items() if x.is_floating_point()}
    value = loss(local | leaves)
    gradients = dict(
        zip(leaves, torch.autograd.grad(value, list(leaves.values()), materialize_grads=True), strict=True)
    )
    own = {f"d {name}": distributed.gather(g) / distributed.world() for name, g in gradients.items() if name in rows}
    common = {f"d {name}": mean_over_ranks(g) for name, g in gradients.items() if name in shared}
    return {"loss": mean_over_ranks(value.detach()), **own, **common}
