"""Saving in the background: what is saved is the step at which it began, one at a time, and failures come to light."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pretrain import saving
from pretrain.background import Job
from pretrain.checkpoint import load_checkpoint
from pretrain.data.tokenizer import Tokenizer
from pretrain.engine import Engine, start_process_group
from pretrain.saving import CheckpointNotWritten, Saver
from pretrain.stepped import Votes
from pretrain.task import Task
from pretrain.train import fit
from tests.pretrain.conftest import Configure
from tests.pretrain.runs import files, logged, weights
from tests.pretrain.tiny import SMALL_BUCKETS, random_batch

STREAM = {"position": 0}
LONGEST = 60.0


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The disk takes weights only while this is set."""
    opened = threading.Event()

    def slowly(tensors: dict[str, torch.Tensor], path: Path) -> None:
        assert opened.wait(LONGEST)
        save_file(tensors, path)

    monkeypatch.setattr(saving, "save_file", slowly)
    yield opened
    opened.set()


def started(configure: Configure, *overrides: str) -> tuple[Saver, Engine]:
    config = configure(*overrides)
    start_process_group()
    torch.manual_seed(0)
    tokenizer = Tokenizer(config.data.tokenizer)
    engine = Engine(Task(config.model, config.objectives, len(tokenizer)), config)
    engine.step(random_batch(8), lr=0.01)
    return Saver(config, tokenizer), engine


@pytest.mark.parametrize("zero", [0, *(pytest.param(zero, marks=pytest.mark.long) for zero in (1, 2)), 3])
def test_training_goes_on_and_leaves_what_is_being_saved_alone(configure, tmp_path, gate, zero):
    saver, engine = started(configure, f"engine.zero={zero}", f"engine.deepspeed={SMALL_BUCKETS}", "optim.ema=0.9")
    expected, moments = engine.weights(), engine.moments()
    saver.start(1, engine, STREAM)
    for _ in range(2):
        stepped = engine.step(random_batch(8), lr=0.01, votes=saver.votes())
        assert stepped.votes == Votes(writing=True)
        saver.heed(stepped.votes)
    assert saver.newest is None
    gate.set()
    saver.finish()
    assert saver.newest == tmp_path / "run/checkpoints/step-00000001"
    assert not all(torch.equal(value, expected[name]) for name, value in engine.weights().items())
    for file, before in (("model.safetensors", expected), ("trainer/moments.safetensors", moments)):
        found = load_file(saver.newest / file)
        assert found.keys() == before.keys()
        assert all(torch.equal(value, before[name]) for name, value in found.items())
    assert load_checkpoint(saver.newest).step == 1


def test_it_is_committed_while_steps_go_on(configure, tmp_path):
    saver, engine = started(configure)
    saver.start(1, engine, STREAM)
    deadline = time.monotonic() + LONGEST
    while saver.newest is None:
        assert time.monotonic() < deadline
        saver.heed(engine.step(random_batch(8), lr=0.01, votes=saver.votes()).votes)
    assert saver.votes() == Votes()
    assert load_checkpoint(tmp_path / "run").step == 1


def test_one_save_waits_for_the_one_before(configure, tmp_path, gate):
    saver, engine = started(configure)
    saver.start(1, engine, STREAM)
    partial = [name for name in files(tmp_path / "run/checkpoints") if "/" not in name]
    threading.Timer(0.2, gate.set).start()
    saver.start(2, engine, STREAM)
    assert saver.newest == tmp_path / "run/checkpoints/step-00000001"
    assert len(partial) <= 1
    saver.finish()
    assert load_checkpoint(tmp_path / "run").step == 2


@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_a_failure_comes_to_light_at_the_next_votes(configure, tmp_path, capsys, policy):
    saver, engine = started(configure, f"run.on_save_failure={policy}")
    saver.start(1, engine, STREAM)
    saver.finish()
    (tmp_path / "run/checkpoints/.partial-step-00000002-2").write_text("in the way")
    saver.start(2, engine, STREAM)
    saver._save.job.wait()
    stepped = engine.step(random_batch(8), lr=0.01, votes=saver.votes())
    assert stepped.votes == Votes(failed=True)
    if policy == "stop":
        with pytest.raises(CheckpointNotWritten, match=r"older ones are whole: rank 0: \[Errno 20\] Not a directory"):
            saver.heed(stepped.votes)
    else:
        saver.heed(stepped.votes)
        assert "step 2: the checkpoint was not written" in capsys.readouterr().err
    assert saver.newest == tmp_path / "run/checkpoints/step-00000001"
    assert load_checkpoint(tmp_path / "run").step == 1
    saver.start(3, engine, STREAM, must=True)
    saver.finish()
    assert load_checkpoint(tmp_path / "run").step == 3


def test_a_failure_of_a_save_that_must_be_stops_the_run(configure, tmp_path):
    saver, engine = started(configure, "run.on_save_failure=continue")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").write_text("in the way")
    saver.start(1, engine, STREAM, must=True)
    with pytest.raises(CheckpointNotWritten):
        saver.finish()


def test_the_background_changes_no_number(configure, tmp_path):
    for mode in ("true", "false"):
        settings = (f"run.async_save={mode}", "run.save_every=1", "run.keep_last=9", "model.fusion.dropout=0.2")
        fit(configure(*settings, f"run.out={tmp_path / mode}"))
    assert logged(tmp_path / "true") == logged(tmp_path / "false")
    for step in range(1, 5):
        found, expected = (weights(tmp_path / mode, step).read_bytes() for mode in ("true", "false"))
        assert found == expected


def test_a_job_that_takes_too_long_has_failed_for_good():
    end = threading.Event()
    job = Job(end.wait, 0.05)
    job.wait()
    assert job.look() == (False, True)
    assert "not written within 0.05 s" in str(job.failure)
    assert job.alive
    end.set()
    job._thread.join()
    assert job.look() == (False, True)


def test_a_job_raises_what_no_disk_does():
    job = Job(lambda: {}["absent"], LONGEST)
    job.wait()
    with pytest.raises(KeyError, match="absent"):
        job.look()
