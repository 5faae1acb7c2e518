"""Averaged weights: they are saved, opened and taken up again; the averaging itself is in tests/distributed."""

import pytest
import torch
from safetensors.torch import load_file

from pretrain.checkpoint import load_checkpoint
from pretrain.engine import Engine, start_process_group
from pretrain.task import Task
from pretrain.train import fit
from shards.errors import UserError
from tests.pretrain.runs import weights
from tests.pretrain.tiny import SMALL_BUCKETS, VOCABULARY, random_batch, tiny_config


def test_a_run_saves_the_average_and_it_can_be_opened(configure, tmp_path):
    fit(configure("run.steps=3", "run.save_every=1", "run.keep_last=9", "optim.ema=0.5", "optim.lr=0.01"))
    run = tmp_path / "run"
    opened = load_checkpoint(run / "ema.safetensors")
    assert opened.step == 3
    assert opened.digest != load_checkpoint(run).digest
    files = [weights(run, step) for step in (1, 2, 3)]
    start = load_file(files[0].with_name("ema.safetensors"))
    one, two, three = (load_file(file) for file in files)
    for name, value in opened.task.state_dict().items():
        expected = start[name] / 4 + two[name] / 4 + three[name] / 2
        # Measured: at most 6e-8.
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert not torch.equal(one["model.text_projection.weight"], three["model.text_projection.weight"])


def test_a_run_without_average_says_so(configure, tmp_path):
    fit(configure("run.steps=1"))
    with pytest.raises(UserError, match=r"has no averaged weights: its run had no `optim\.ema`"):
        load_checkpoint(tmp_path / "run" / "ema.safetensors")


@pytest.mark.parametrize("zero", range(4))
def test_the_average_is_taken_up_at_any_stage(zero):
    start_process_group()
    optim, engine = {"ema": 0.9}, {"zero": zero, "deepspeed": SMALL_BUCKETS}
    first, second = (
        Engine(Task(config.model, config.objectives, VOCABULARY), config)
        for config in (tiny_config(optim=optim), tiny_config(optim=optim, engine=engine))
    )
    first.step(random_batch(8), lr=0.1)
    assert first.ema
    assert second.ema
    expected = first.ema.weights()
    second.ema.load(expected)
    found = second.ema.weights()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(UserError, match="the averaged weights lack "):
        second.ema.load({})
