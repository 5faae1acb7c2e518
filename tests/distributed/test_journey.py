"""A run that meets another world size, and another ZeRO stage, in each of its lives: 2, then 1, then 4 ranks."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.pretrain.conftest import Corpus
from tests.pretrain.runs import logged, weights
from tests.ranks import run_module

pytestmark = [pytest.mark.slow, pytest.mark.long]
LIVES = ((2, 2), (1, 4), (4, 6))  # ranks, and the step that they come to
STEPS = 6
SETTINGS = ("optim.lr=3e-3", "optim.schedule=constant", "optim.ema=0.9", "run.keep_last=9", "run.save_every=2")
RUNS = {"stage-1": "111", "stage-2": "222", "stage-3": "333", "changing": "132"}
"""The stage of each life."""


@pytest.fixture(scope="module")
def travelled(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs, and of one that stays what it is: a single process at stage 0."""
    root = tmp_path_factory.mktemp("journey")
    for life, (world, steps) in enumerate(LIVES):
        lives = [f"{name}={plan[life]}/{steps}" for name, plan in RUNS.items()]
        if world == 1:
            lives.append(f"whole=0/{STEPS}")
        ended = run_module("tests.distributed.journey", corpus.config, root, *lives, *SETTINGS, world=world)
        assert ended.status == [0] * world, ended.stderr
    return root


@pytest.mark.parametrize("run", RUNS)
def test_it_sees_the_same_batches_and_comes_to_the_same_weights(travelled, run):
    found, expected = logged(travelled / run), logged(travelled / "whole")
    assert [line["step"] for line in found] == list(range(1, STEPS + 1))
    for mine, others in zip(found, expected, strict=True):
        # Measured: at most 2.3e-7 relative.
        assert mine == pytest.approx(others, rel=2e-6)
    for name in ("model.safetensors", "ema.safetensors"):
        mine, others = (load_file(weights(travelled / place, STEPS).with_name(name)) for place in (run, "whole"))
        for key, value in others.items():
            # Measured: at most 5.1e-5, and 2.6e-4 for key biases, whose gradient is rounding alone (test_matrix.py).
            allowed = 1e-3 if key.endswith(("key.bias", "qkv.bias")) else 2e-4
            torch.testing.assert_close(mine[key], value, rtol=0, atol=allowed, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("run", RUNS)
def test_each_life_says_where_it_stood(travelled, run):
    for (world, step), zero in zip(LIVES, RUNS[run], strict=True):
        state = json.loads((weights(travelled / run, step).parent / "state.json").read_text())
        whole = json.loads((weights(travelled / "whole", step).parent / "state.json").read_text())
        assert (state["world"], state["zero"], state["step"]) == (world, int(zero), step)
        assert state["stream"] == whole["stream"]
