"""The whole trainer at world 1 and 2, at every ZeRO stage: the same run, and the same run again after an interruption.

Each launch trains all four stages, since starting processes takes longer than training.
"""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.pretrain.conftest import Corpus
from tests.pretrain.runs import files, interrupted, logged, weights
from tests.ranks import run_module

pytestmark = [pytest.mark.slow, pytest.mark.long]
STEPS = 5
SETTINGS = (
    f"run.steps={STEPS}",
    "run.save_every=3",
    "run.keep_last=9",
    "optim.lr=3e-3",
    "optim.multipliers={model.text.: 0.5}",
    "optim.freeze=[model.vision.backbone.patch_embed.]",
    "optim.ema=0.9",
)
STAGES = range(4)


@pytest.fixture(scope="module")
def trained(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """World size -> a folder with zero-0 ... zero-3."""
    root = tmp_path_factory.mktemp("stages")
    for world in (1, 2):
        ended = run_module("tests.distributed.stages", corpus.config, root / f"world-{world}", *SETTINGS, world=world)
        assert ended.status == [0] * world, ended.stderr
    return {world: root / f"world-{world}" for world in (1, 2)}


@pytest.mark.parametrize("zero", STAGES)
def test_world_and_stage_change_nothing(trained, zero):
    one, other = trained[1] / "zero-0", trained[2] / f"zero-{zero}"
    for expected, found in zip(logged(one), logged(other), strict=True):
        # Measured: at most 2e-7 relative.
        assert found == pytest.approx(expected, rel=2e-6)
    expected, found = load_file(weights(one, STEPS)), load_file(weights(other, STEPS))
    assert expected.keys() == found.keys()
    for name in expected:
        # Measured: at most 3.2e-6; 5.2e-5 for key biases, whose gradient is rounding alone (a softmax does not see what
        # all its scores share), which Adam enlarges to whole steps.
        allowed = 3e-4 if name.endswith(("key.bias", "qkv.bias")) else 2e-5
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=allowed, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("zero", STAGES)
def test_the_weights_moved_and_the_frozen_did_not(trained, zero):
    before, after = (load_file(weights(trained[2] / f"zero-{zero}", step)) for step in (3, STEPS))
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == {name for name in before if name.startswith("model.vision.backbone.patch_embed.")}


def test_an_interrupted_run_goes_on_bit_for_bit_at_every_stage(trained, corpus, tmp_path):
    for zero in STAGES:
        interrupted(trained[2] / f"zero-{zero}", 3, tmp_path / f"zero-{zero}")
    ended = run_module("tests.distributed.stages", corpus.config, tmp_path, *SETTINGS, "run.resume=auto", world=2)
    assert ended.status == [0, 0], ended.stderr
    for zero in STAGES:
        whole, continued = trained[2] / f"zero-{zero}", tmp_path / f"zero-{zero}"
        assert logged(continued) == logged(whole)
        for name in ("model.safetensors", "ema.safetensors"):
            mine, others = (weights(run, STEPS).with_name(name) for run in (continued, whole))
            assert mine.read_bytes() == others.read_bytes()


def test_another_world_size_needs_the_whole_moments(trained, corpus, tmp_path):
    run = interrupted(trained[2] / "zero-0", 3, tmp_path / "zero-0")
    (run / "checkpoints" / "step-00000003" / "trainer" / "moments.safetensors").unlink()
    before = files(run)
    ended = run_module("pretrain.cli", "--config", corpus.config, f"run.out={run}", *SETTINGS, "--resume")
    assert ended.status == [2]
    assert "`world_size` (=1) must be that of the checkpoint (=2)" in ended.stderr[0]
    assert files(run) == before


def test_a_loss_that_is_not_a_number_stops_every_rank(corpus, tmp_path):
    run = tmp_path / "run"
    ended = run_module(
        "pretrain.cli", "--config", corpus.config, f"run.out={run}", *SETTINGS, "optim.lr=1e30", "optim.clip=0", world=2
    )
    assert ended.status == [1, 1], ended.stderr
    for text in ended.stderr:
        assert re.search(
            r"^error: the loss `\w+` is nan; the optimizer has not moved; there is no checkpoint", text, re.MULTILINE
        ), text
    assert not weights(run, STEPS).exists()
