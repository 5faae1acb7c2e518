"""Muon against torch's own for matrices and against torch's AdamW for all else, and which parameters are which."""

import pytest
import torch
from torch import nn

from pretrain.config import OptimConfig, PretrainConfig
from pretrain.muon import Muon, orthogonal
from pretrain.optim import build_optimizer, set_lr
from pretrain.settings import parse_config
from pretrain.task import Task
from pretrain.train import fit
from shards.errors import UserError
from tests.pretrain.runs import interrupted, logged, weights
from tests.pretrain.tiny import VOCABULARY, tiny_config


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8), (5, 3, 2, 2)])
def test_singular_values_come_near_one_and_directions_stay(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape).flatten(1)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    made = orthogonal(matrix)
    assert made.shape == matrix.shape
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert nn.functional.cosine_similarity(made.flatten(), (left @ right).flatten(), dim=0) > 0.97


def stepped(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("shape", [(12, 30), (30, 12)])
def test_matrices_move_as_by_torchs_muon(shape):
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    groups = [{"params": [ours], "matrices": True, "weight_decay": 0.1}]
    moved = stepped(Muon(groups, lr=0.02), ours)
    peer = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    # Both iterate in bfloat16 with products in another order: measured 1.2 % of the way.
    assert (moved - stepped(peer, theirs)).norm() < 0.04 * (moved - start).norm()


def test_a_kernel_moves_as_the_matrix_of_its_output_channels():
    kernel = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    whole, flat = nn.Parameter(kernel.clone()), nn.Parameter(kernel.flatten(1).clone())
    moved = [stepped(Muon([{"params": [p], "matrices": True}], lr=0.1), p) for p in (whole, flat)]
    assert torch.equal(moved[0].flatten(1), moved[1])


def test_the_rest_moves_as_by_torchs_adamw():
    start = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    moved = stepped(Muon([{"params": [ours], "weight_decay": 0.1}], lr=0.02), ours)
    peer = torch.optim.AdamW([theirs], lr=0.02, betas=(0.9, 0.98), weight_decay=0.1)
    torch.testing.assert_close(moved, stepped(peer, theirs), rtol=1e-6, atol=1e-6)


def test_matrices_are_all_but_vectors_embeddings_and_what_is_named():
    config = tiny_config()
    task = Task(config.model, config.objectives, VOCABULARY)
    optimizer = build_optimizer(task, OptimConfig(name="muon", by_adamw=["model.image_projection."]))
    kinds = {id(p): group["matrices"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: kinds[id(p)] for name, p in task.named_parameters()}
    assert found["model.vision.backbone.blocks.0.attn.qkv.weight"]
    assert found["model.text_projection.weight"]
    for name in ("model.image_projection.weight", "model.text_projection.bias", "objectives.itc.log_temperature"):
        assert not found[name], name
    assert not found["model.text.bert.embeddings.word_embeddings.weight"]
    set_lr(optimizer, 0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}


def test_a_run_falls_and_goes_on_bit_for_bit(configure, tmp_path):
    settings = ("optim.name=muon", "optim.lr=3e-3", "run.steps=20", "run.save_every=10", "run.log_every=5")
    fit(configure(*settings))
    first, *_, last = logged(tmp_path / "run")
    assert last["loss"] < first["loss"]
    copy = interrupted(tmp_path / "run", 10, tmp_path / "copy")
    fit(configure(*settings, f"run.out={copy}", "run.resume=auto"))
    assert weights(copy, 20).read_bytes() == weights(tmp_path / "run", 20).read_bytes()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"optim": {"name": "muon"}, "engine": {"zero": 1}},
            r"`optim\.name` \(=muon\) reads whole matrices, so `engine\.zero` \(=1\) must be 0",
        ),
        (
            {"optim": {"by_adamw": ["model."]}},
            r"`optim\.by_adamw` \(=\['model\.'\]\) is for `optim\.name` muon, not adamw",
        ),
    ],
)
def test_what_muon_cannot_do_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        parse_config(PretrainConfig, values)


def test_a_prefix_that_matches_nothing_is_refused():
    with pytest.raises(UserError, match=r"^`optim\.by_adamw` \(=head\) matches no parameter; names start with "):
        build_optimizer(nn.Linear(2, 2), OptimConfig(name="muon", by_adamw=["head"]))
