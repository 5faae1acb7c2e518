"""The step before step one: nothing stays of it, and memory that does not suffice is one sentence before any file."""

import resource
import subprocess
import sys

import pytest
import torch

from pretrain.engine import Engine, start_process_group
from pretrain.rehearsal import largest
from pretrain.task import Task
from pretrain.train import fit
from tests.pretrain.runs import files, logged, weights
from tests.pretrain.tiny import CLASSES, SMALL_BUCKETS, VOCABULARY, random_batch, region_batch, tiny_config, tiny_joint
from tests.ranks import environment

STAGES = range(4)
SETTINGS = (
    "run.steps=3",
    "optim.lr=3e-3",
    "optim.ema=0.9",
    "model.fusion.dropout=0.2",
    "model.text.options.hidden_dropout_prob=0.1",
)
BATCH_NORM = "model.vision={name: resnet10t, options: {channels: [8, 16, 24, 32]}}"
KINDS = {
    **{f"zero {zero}": (f"engine.zero={zero}", f"engine.deepspeed={SMALL_BUCKETS}") for zero in STAGES},
    "bf16": ("engine.precision=bf16", "engine.zero=1"),
    "accumulation": ("engine.accumulation=2", "engine.activation_checkpointing=true"),
    "sgd": ("optim.name=sgd", "optim.momentum=0.9"),
    "BatchNorm": (BATCH_NORM,),
    "queue and momentum": ("objectives={momentum: {}, itc: {targets: distilled, queue: 16}, itm: {}, mlm: {}}",),
    "mixture": ("objectives.policy=one", "objectives.mix={itc: 1, itm+mlm: 1}"),
}


LONG = ("zero 1", "zero 2", "accumulation", "sgd")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.long] if kind in LONG else []) for kind in KINDS]
)
def test_nothing_stays_of_it(configure, tmp_path, kind):
    for rehearse in ("true", "false"):
        fit(configure(*SETTINGS, *KINDS[kind], f"run.rehearse={rehearse}", f"run.out={tmp_path / rehearse}"))
    assert logged(tmp_path / "true") == logged(tmp_path / "false")
    for name in ("model.safetensors", "ema.safetensors", "trainer/moments.safetensors"):
        found, expected = (weights(tmp_path / run, 3).parent / name for run in ("true", "false"))
        assert found.read_bytes() == expected.read_bytes()


def test_the_loss_scale_stays_as_it_is():
    start_process_group()
    config = tiny_config(engine={"precision": "fp16", "zero": 1})
    engine = Engine(Task(config.model, config.objectives, VOCABULARY), config)
    before, weights, random = engine._scale.state_dict(), engine.weights(), torch.get_rng_state()
    engine.rehearse(random_batch(8), random_batch(8))
    assert engine._scale.state_dict() == before
    assert all(torch.equal(value, weights[name]) for name, value in engine.weights().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_the_largest_batch():
    config = tiny_joint({"mlm": {}}, data={"max_tokens": 16, "regions": {"most": 11, "hide": 0.3, "classes": CLASSES}})
    batch = region_batch(4)
    found = largest(batch, config)
    assert found.token_ids_BL.shape == found.masked_labels_BL.shape == (4, 16)
    assert found.region_features_BKF.shape[:2] == found.region_mask_BK.shape == (4, 11)
    assert found.token_mask_BL.all()
    assert found.region_mask_BK.all()
    assert torch.equal(found.token_ids_BL[:, 9:], batch.token_ids_BL[:, :7])  # nine tokens were there
    assert torch.equal(found.draws_BK, batch.draws_BK)
    assert torch.equal(found.group_B, batch.group_B)
    assert largest(found, config).token_ids_BL.shape == (4, 16)


def test_every_choice_of_objectives_is_tried(monkeypatch):
    start_process_group()
    config = tiny_config(objectives={"itc": {}, "itm": {}, "mlm": {}, "policy": "one", "mix": {"itc": 1, "itm+mlm": 1}})
    task = Task(config.model, config.objectives, VOCABULARY)
    engine, seen = Engine(task, config), []
    task.register_forward_hook(lambda *_: seen.append(task.active))
    before = task.active
    engine.rehearse(random_batch(8), random_batch(8))
    assert seen == [("itc",), ("itm", "mlm")]
    assert task.active == before


@pytest.mark.slow
@pytest.mark.long
def test_a_step_that_does_not_fit_is_one_sentence_before_any_file(corpus, tmp_path):
    """A real limit on the memory of the process, and images that need more."""
    gigabytes = 6

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (gigabytes << 30, gigabytes << 30))

    settings = ("data.global_batch=64", "model.image_size=1024", f"run.out={tmp_path / 'run'}")
    command = [sys.executable, "-m", "pretrain.cli", "--config", corpus.config, *settings]
    ended = subprocess.run(command, env=environment(), preexec_fn=limited, capture_output=True, text=True, check=False)
    assert ended.returncode == 2, ended.stderr
    [line] = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert (
        "`data.global_batch` (=64), 64 pairs of up to 32 tokens a rank, must fit into memory: lower it, raise" in line
    )
    assert "Traceback" not in ended.stderr
    assert files(tmp_path / "run") == []
