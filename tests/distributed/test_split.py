"""The same global batch split over 1, 2 or 4 ranks gives the same losses and the same gradients, gathers included."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pretrain import distributed
from pretrain.batch import Batch
from pretrain.task import Task
from tests.pretrain.tiny import VOCABULARY, random_batch, tiny_config

PAIRS = 8


def part(batch: Batch, rank: int, world: int) -> Batch:
    rows = slice(rank * PAIRS // world, (rank + 1) * PAIRS // world)
    cut = {name: value[rows] for name, value in vars(batch).items() if value is not None}
    longest = int(cut["token_mask_BL"].sum(1).max())  # a rank pads to its own longest text
    texts = {n: cut[n][:, :longest] for n in ("token_ids_BL", "token_mask_BL", "masked_ids_BL", "masked_labels_BL")}
    return Batch(**(cut | texts))


def losses_and_gradients(batch: Batch) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    config = tiny_config()
    task = Task(config.model, config.objectives, VOCABULARY).double()
    losses = task(batch)
    losses["loss"].backward()
    found = {f"loss {name}": loss.detach() for name, loss in losses.items()}
    found |= {name: p.grad for name, p in task.named_parameters() if p.grad is not None}
    return {name: distributed.sum_over_ranks(value) / distributed.world() for name, value in found.items()}


def work(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    found = losses_and_gradients(part(random_batch(PAIRS), rank, world))
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 4])
def test_losses_and_gradients_do_not_depend_on_the_split(world: int, tmp_path: Path):
    expected = losses_and_gradients(random_batch(PAIRS))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    mp.spawn(work, (world, str(tmp_path)), nprocs=world)
    found = torch.load(tmp_path / "found.pt")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Measured: at most 1.1e-14 in float64; only the order of sums differs.
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
