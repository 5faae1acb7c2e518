"""Losses and gradients that are not finite stop a run before its weights move."""

import json
import math

import pytest
import torch

from pretrain.checkpoint import digests_file, load_checkpoint, sha256
from pretrain.engine import Engine
from pretrain.stepped import NonFinite
from pretrain.task import Task
from pretrain.train import fit
from tests.pretrain.runs import files, interrupted
from tests.pretrain.tiny import SMALL_BUCKETS, VOCABULARY, random_batch


def test_a_loss_that_is_not_finite_stops_before_the_weights_move(configure, tmp_path):
    """The checkpoint of step 2 is poisoned, so that step 3 meets a NaN."""
    settings = ("run.steps=4", "run.save_every=2", "run.keep_last=9", "run.max_rollbacks=0")
    fit(configure(*settings))
    run = interrupted(tmp_path / "run", 2, tmp_path / "copy")
    state = torch.load(found := next(run.rglob("mp_rank_00_model_states.pt")), weights_only=False)
    state["module"]["model.text_projection.weight"][0, 0] = math.nan
    torch.save(state, found)
    digests = json.loads((known := digests_file(found.parents[2], rank=0)).read_text())
    known.write_text(json.dumps(digests | {"trainer/engine/mp_rank_00_model_states.pt": sha256(found)}))
    before = files(run)
    with pytest.raises(NonFinite, match=r"the loss `\w+` is nan; the optimizer has not moved"):
        fit(configure(*settings, f"run.out={run}", "run.resume=auto"))
    added = {file for file in files(run) if "tfevents" not in file} - set(before)
    assert added == set()  # no checkpoint, and without a budget no batch is tried in its place
    assert set(before) <= set(files(run))
    assert load_checkpoint(run).step == 2


def test_the_optimizer_has_not_moved_after_a_bad_loss(configure):
    config = configure()
    task = Task(config.model, config.objectives, VOCABULARY)
    fit(configure("run.steps=0"))  # starts the process group that the engine needs
    engine = Engine(task, config)
    with torch.no_grad():
        task.objectives["itc"].log_temperature.fill_(math.nan)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    with pytest.raises(NonFinite):
        engine.step(random_batch(8), lr=1.0)
    after = task.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before if n != "objectives.itc.log_temperature")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero", range(4))
def test_a_gradient_that_is_not_finite_stops_before_the_weights_move(configure, zero, precision):
    """Once sound, once poisoned while every loss is finite, and sound again: nothing is left of the bad step."""
    config = configure(f"engine.zero={zero}", f"engine.deepspeed={SMALL_BUCKETS}", f"engine.precision={precision}")
    fit(configure("run.steps=0"))  # starts the process group that the engine needs
    task = Task(config.model, config.objectives, VOCABULARY)
    engine = Engine(task, config)
    untrained = engine.weights()
    assert math.isfinite(engine.step(random_batch(8), lr=1e-3).losses["loss"])
    before = engine.weights()
    assert not all(torch.equal(before[name], untrained[name]) for name in before)
    poison = task.model.text_projection.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NonFinite, match=r"^the gradient is not finite; the optimizer has not moved$"):
        engine.step(random_batch(8), lr=1e-3)
    after = engine.weights()
    assert all(torch.equal(before[name], after[name]) for name in before)
    poison.remove()
    engine.step(random_batch(8), lr=1e-3)
    assert all(weight.isfinite().all() for weight in engine.weights().values())
