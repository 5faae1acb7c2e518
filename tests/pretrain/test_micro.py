"""A step in micro batches is the step without: same losses, same gradients, dropout replayed; and it keeps less."""

import pytest
import torch
from torch import Tensor

from pretrain import micro
from pretrain.settings import merge
from pretrain.task import Task
from pretrain.train import check
from shards.errors import UserError
from tests.pretrain.tiny import VOCABULARY, random_batch, tiny_config

PAIRS = 12
DROPOUT = {
    "text": {"options": {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2}},
    "vision": {"options": {"proj_drop_rate": 0.3, "drop_path_rate": 0.2}},
    "fusion": {"dropout": 0.3},
}


def build(objectives: dict[str, object], dropout: bool = False) -> Task:
    torch.manual_seed(0)
    model = tiny_config().model.model_dump()
    trunk = {"fusion": {"trunk": "text_queries_image" if {"itm", "mlm"} & objectives.keys() else "none"}}
    config = tiny_config(model=merge(merge(model, DROPOUT if dropout else {}), trunk), objectives=objectives)
    return Task(config.model, config.objectives, VOCABULARY).double()


def losses_and_gradients(task: Task, micro_batches: int) -> dict[str, Tensor]:
    task.zero_grad()
    task.micro_batches = micro_batches
    torch.manual_seed(1)
    losses = task(random_batch(PAIRS))
    losses["loss"].backward()
    found = {f"loss {name}": loss.detach() for name, loss in losses.items()}
    return found | {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Measured: at most 1.1e-14 in float64; only the order of sums differs.
        torch.testing.assert_close(found[name], value, rtol=1e-11, atol=1e-13, msg=lambda m, n=name: f"{n}: {m}")


OBJECTIVES = [{"itc": {}}, {"mlm": {}}, {"itc": {}, "itm": {}, "mlm": {}}]


@pytest.mark.parametrize("objectives", OBJECTIVES, ids="+".join)
@pytest.mark.parametrize("micro_batches", [2, 3, 12])
def test_the_step_does_not_depend_on_micro_batches(objectives, micro_batches):
    task = build(objectives)
    assert_same(losses_and_gradients(task, micro_batches), losses_and_gradients(task, 1))


@pytest.mark.parametrize("objectives", OBJECTIVES, ids="+".join)
def test_dropout_is_replayed(objectives, monkeypatch):
    """Against the same micro batches with everything kept for the backward."""
    task = build(objectives, dropout=True).train()
    cached = losses_and_gradients(task, 4)
    monkeypatch.setattr(micro, "recomputed", lambda function: function)
    assert_same(losses_and_gradients(task, 4), cached)
    without = losses_and_gradients(task.eval(), 4)
    assert not torch.isclose(without["loss loss"], cached["loss loss"])


def kept_bytes(task: Task, micro_batches: int, pairs: int) -> int:
    """What the forward keeps for the backward, parameters aside."""
    task.micro_batches = micro_batches
    own = {p.data_ptr() for p in task.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = task(random_batch(pairs))["loss"]
    assert loss.requires_grad
    return sum(kept.values())


def test_micro_batches_keep_less():
    task = build({"itc": {}})
    whole, parts = kept_bytes(task, 1, 32), kept_bytes(task, 8, 32)
    # Measured: an eighteenth: embeddings, similarities, and the inputs of each part.
    assert parts < whole / 10


def test_micro_batches_must_be_whole(configure):
    with pytest.raises(UserError, match=r"`engine.accumulation` \(=3\) must divide each rank's part .* \(=8\)"):
        check(configure("engine.accumulation=3"))
