"""Checkpoints open as they were saved, or say why not; a save that fails takes nothing with it."""

import json
import pickle
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pretrain.checkpoint import find_checkpoint, load_checkpoint
from pretrain.config import PretrainConfig
from pretrain.data.tokenizer import Tokenizer
from pretrain.engine import Engine, start_process_group
from pretrain.models.interface import ImageInput, TextInput
from pretrain.saving import CheckpointNotWritten, Saver, prune
from pretrain.task import Task
from pretrain.train import fit
from shards.errors import UserError
from tests.pretrain.runs import files
from tests.pretrain.tiny import random_batch

STREAM = {"position": 0}


@pytest.fixture
def trained(configure, tmp_path) -> Path:
    """A run folder with one checkpoint, of step 2."""
    fit(configure("run.steps=2"))
    return tmp_path / "run"


def engine_of(config: PretrainConfig) -> tuple[Engine, Task, Tokenizer]:
    start_process_group()
    tokenizer = Tokenizer(config.data.tokenizer)
    task = Task(config.model, config.objectives, len(tokenizer))
    return Engine(task, config), task, tokenizer


def save(run: Path, step: int, engine: Engine, config: PretrainConfig, tokenizer: Tokenizer) -> Path:
    """A checkpoint in the folder of a run, waited for."""
    config = config.model_copy(update={"run": config.run.model_copy(update={"out": str(run)})})
    saver = Saver(config, tokenizer)
    saver.start(step, engine, STREAM)
    saver.finish()
    assert saver.newest
    return saver.newest


def test_a_checkpoint_computes_what_the_trained_model_computed(configure, tmp_path):
    config = configure("optim.lr=0.01")
    engine, task, tokenizer = engine_of(config)
    batch = random_batch(8)
    for _ in range(3):
        engine.step(batch, lr=0.01)
    config = config.model_copy(update={"run": config.run.model_copy(update={"out": str(tmp_path)})})
    found = load_checkpoint(save(tmp_path, 3, engine, config, tokenizer))
    assert (found.step, found.state["stream"]) == (3, STREAM)
    assert not found.task.training
    assert found.config == config
    ids = [t.encode("a red circle", 16).ids_L.tolist() for t in (found.tokenizer, tokenizer)]
    assert ids[0] == ids[1]
    task.eval()
    with torch.no_grad():
        mine, other = (t.model.encode_image(ImageInput(batch.pixels_BHWC)) for t in (task, found.task))
        assert torch.equal(mine.embedding_BE, other.embedding_BE)
        mine, other = (
            t.model.encode_text(TextInput(batch.token_ids_BL, batch.token_mask_BL)) for t in (task, found.task)
        )
        assert torch.equal(mine.tokens_BTD, other.tokens_BTD)
        assert {n: float(v) for n, v in task(batch).items()} == {n: float(v) for n, v in found.task(batch).items()}


def test_a_run_and_its_checkpoint_are_found(trained):
    checkpoint = trained / "checkpoints" / "step-00000002"
    assert find_checkpoint(trained) == find_checkpoint(checkpoint) == checkpoint
    assert load_checkpoint(trained).digest == load_checkpoint(checkpoint).digest


def test_one_changed_byte_is_noticed(trained):
    weights = find_checkpoint(trained) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged: model\.safetensors does not have the sha256 that state\.json"):
        load_checkpoint(trained)


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "tokenizer.json"])
def test_a_missing_file_is_named(trained, name):
    (find_checkpoint(trained) / name).unlink()
    with pytest.raises(UserError, match=f"is damaged: {name}"):
        load_checkpoint(trained)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_state_is_a_sentence(trained, content):
    (find_checkpoint(trained) / "state.json").write_text(content)
    with pytest.raises(UserError, match=r"is damaged: state\.json"):
        load_checkpoint(trained)


@pytest.mark.parametrize("name", ["rng-0.pt", "moments.safetensors", "engine/mp_rank_00_model_states.pt"])
@pytest.mark.parametrize("how", ["changed", "missing"])
def test_damage_in_what_a_run_goes_on_from_is_a_sentence(configure, trained, name, how):
    file = find_checkpoint(trained) / "trainer" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()
    if how == "changed":
        file.write_bytes(content)
    with pytest.raises(UserError, match=rf"^`ckpt` .* is damaged: .*{name}"):
        fit(configure("run.steps=3", "run.resume=auto"))
    assert find_checkpoint(trained).name == "step-00000002"


def test_weights_of_another_shape_are_refused(trained):
    path = find_checkpoint(trained)
    config = (path / "config.yaml").read_text().replace("embedding_dim: 16", "embedding_dim: 24")
    (path / "config.yaml").write_text(config)
    state = json.loads((path / "state.json").read_text())
    del state["files"]["config.yaml"]
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match="does not fit its own configuration"):
        load_checkpoint(trained)


@pytest.mark.parametrize("place", ["absent", "."])
def test_where_no_checkpoint_lies(tmp_path, place):
    with pytest.raises(UserError, match=r"must be a checkpoint folder or a run folder with checkpoints/latest"):
        load_checkpoint(tmp_path / place)


def test_what_a_killed_save_left_is_ignored_and_removed(configure, trained):
    root = trained / "checkpoints"
    (root / ".partial-step-00000004").mkdir()
    (root / ".partial-step-00000004" / "model.safetensors").write_bytes(b"half")
    assert load_checkpoint(trained).step == 2
    fit(configure("run.steps=3", "run.resume=auto"))
    assert sorted(path.name for path in root.iterdir()) == ["latest", "step-00000002", "step-00000003"]


def test_pruning_keeps_the_newest_and_never_the_one_that_latest_names(tmp_path):
    for step in (1, 2, 3, 9):  # 9 was renamed but a kill came before `latest` moved
        (tmp_path / f"step-{step:08d}").mkdir()
    (tmp_path / "latest").write_text("step-00000003")
    prune(tmp_path, keep=2)
    assert files(tmp_path) == ["latest", "step-00000002", "step-00000003"]


def test_pruning_keeps_the_steps_that_keep_every_divides(tmp_path):
    for step in (2, 3, 4, 6, 7, 8):  # `latest` never came to 8
        (tmp_path / f"step-{step:08d}").mkdir()
    (tmp_path / "latest").write_text("step-00000007")
    prune(tmp_path, keep=1, every=4)
    assert files(tmp_path) == ["latest", "step-00000004", "step-00000007"]


def test_weights_load_without_pickle(trained, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert load_checkpoint(trained).step == 2


def test_the_portable_files_are_enough(trained, tmp_path):
    source, target = find_checkpoint(trained), tmp_path / "hub"
    target.mkdir()
    for name in ("model.safetensors", "config.yaml", "tokenizer.json", "state.json"):
        (target / name).write_bytes((source / name).read_bytes())
    assert load_checkpoint(target).step == 2


def test_weights_that_are_not_finite_are_not_saved(configure, tmp_path):
    config = configure()
    engine, task, tokenizer = engine_of(config)
    save(tmp_path, 1, engine, config, tokenizer)
    with torch.no_grad():
        task.model.text_projection.bias[0] = torch.inf
    with pytest.raises(CheckpointNotWritten, match=r"`model\.text_projection\.bias` in .* is not finite"):
        save(tmp_path, 2, engine, config, tokenizer)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-00000001"]


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A real file system of 4 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small disk needs root: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)  # a test that fails may hold files open


@pytest.mark.parametrize("left", [0, 400_000, 1_100_000])
def test_a_full_disk_leaves_the_older_checkpoint_whole(configure, small_disk, left):
    """Full at the start of the save, within the optimizer's state, and within the weights."""
    config = configure()
    engine, _, tokenizer = engine_of(config)
    engine.step(random_batch(8), lr=0.01)
    first = save(small_disk, 1, engine, config, tokenizer)
    expected = load_file(first / "model.safetensors")
    usage = subprocess.run(["df", "--output=avail", "-B1", small_disk], capture_output=True, text=True, check=True)
    (small_disk / "filler").write_bytes(bytes(int(usage.stdout.split()[1]) - left))
    with pytest.raises(CheckpointNotWritten, match="the checkpoint was not written, older ones are whole: "):
        save(small_disk, 2, engine, config, tokenizer)
    assert sorted(path.name for path in (small_disk / "checkpoints").iterdir()) == ["latest", "step-00000001"]
    found = load_checkpoint(first)
    assert all(torch.equal(value, expected[name]) for name, value in found.task.state_dict().items())
    (small_disk / "filler").unlink()
    assert load_checkpoint(save(small_disk, 2, engine, config, tokenizer)).step == 2


@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_a_disk_that_fills_up_stops_the_run_or_lets_it_go_on(configure, small_disk, capsys, policy):
    """Full after the first checkpoint; at the end there must be one, so the run then stops in any case."""
    settings = (f"run.out={small_disk / 'run'}", "run.steps=3", "run.save_every=1", f"run.on_save_failure={policy}")
    fit(configure(*settings, "run.steps=1"))
    usage = subprocess.run(["df", "--output=avail", "-B1", small_disk], capture_output=True, text=True, check=True)
    (small_disk / "filler").write_bytes(bytes(int(usage.stdout.split()[1]) - 50_000))
    with pytest.raises(CheckpointNotWritten):
        fit(configure(*settings, "run.resume=auto"))
    said = capsys.readouterr().err
    assert ("step 2: the checkpoint was not written, older ones are whole: " in said) == (policy == "continue")
    assert load_checkpoint(small_disk / "run").step == 1
    (small_disk / "filler").unlink()
    assert load_checkpoint(fit(configure(*settings, "run.resume=auto"))).step == 3
