"""Momentum towers, the queue and one task of a mixture: alike at ZeRO 0, 1 and 2, and after an interruption."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.pretrain.conftest import Corpus
from tests.pretrain.runs import logged, weights
from tests.ranks import run_module

pytestmark = [pytest.mark.slow, pytest.mark.long]
MIDDLE, STEPS = 3, 6
SETTINGS = (
    f"run.steps={STEPS}",
    f"run.save_every={MIDDLE}",
    "run.keep_last=9",
    "optim.lr=3e-3",
    "optim.clip=0",
    "objectives.momentum={decay: 0.9, ramp_steps: 4}",
    "objectives.itc={targets: distilled, queue: 20}",
    "objectives.mlm={targets: distilled}",
    "objectives.policy=one",
    "objectives.mix={itc: 1, itm+mlm: 1}",
)


@pytest.fixture(scope="module")
def trained(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with zero-N and again-N."""
    root = tmp_path_factory.mktemp("momentum")
    ended = run_module("tests.distributed.momentum_stages", corpus.config, root, str(MIDDLE), *SETTINGS, world=2)
    assert ended.status == [0, 0], ended.stderr
    return root


@pytest.mark.parametrize("zero", [1, 2])
def test_the_stage_changes_nothing(trained, zero):
    expected, found = (load_file(weights(trained / f"zero-{stage}", STEPS)) for stage in (0, zero))
    assert expected.keys() == found.keys()
    assert any(name.startswith("momentum.model.") for name in found)
    for name in expected:
        # Measured: no difference at all.
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("zero", range(3))
def test_the_towers_follow_and_the_queue_fills(trained, zero):
    before, after = (load_file(weights(trained / f"zero-{zero}", step)) for step in (MIDDLE, STEPS))
    assert after["momentum.steps"].tolist() == [STEPS]
    moved = [n for n in after if n.startswith("momentum.model.") and after[n].is_floating_point()]
    assert all(not torch.equal(before[n], after[n]) for n in moved)
    fast = "model.text_projection.weight"
    distance = [(state[f"momentum.{fast}"] - state[fast]).norm() for state in (before, after)]
    assert all(d > 0 for d in distance)
    contrasted = sum("loss/itc" in line for line in logged(trained / f"zero-{zero}"))
    assert (after["objectives.itc.queue.group_Q"] >= 0).sum() == min(20, 8 * contrasted)
    assert 0 < contrasted < STEPS


@pytest.mark.parametrize("zero", range(3))
def test_an_interrupted_run_goes_on_bit_for_bit(trained, zero):
    whole, again = trained / f"zero-{zero}", trained / f"again-{zero}"
    assert weights(again, STEPS).read_bytes() == weights(whole, STEPS).read_bytes()
    assert logged(again) == logged(whole)
