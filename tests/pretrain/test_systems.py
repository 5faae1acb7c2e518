"""The published systems: each says where its settings are from, has the published size, and learns in small."""

import json
import re
from collections import deque

import pytest
import torch
from typer.testing import CliRunner

from pretrain.cli import app
from pretrain.config import PretrainConfig
from pretrain.data.labels import RegionVocabulary
from pretrain.data.loader import Preparation
from pretrain.data.tokenizer import Tokenizer
from pretrain.settings import load_config
from pretrain.sources import read_sources
from pretrain.systems import find_systems, read_system, shrink
from pretrain.task import Task
from shards.stream import ShardStream
from tests.end_to_end.test_shipped_configs import CONFIGS

FOLDER = CONFIGS / "systems"
FILES = find_systems(FOLDER)
NAMES = (
    "ViLBERT LXMERT METER ALIGN CLIP BriVL VisualBERT Unicoder-VL VL-BERT OSCAR VinVL Pixel-BERT ViLT UNITER "
    "Unified-VLP ImageBERT SimVLM ALBEF BLIP X-VLM FILIP LightningDOT"
)
OPTIM = ("lr", "weight_decay", "betas", "clip", "schedule", "warmup_steps")
ALWAYS = ("data.global_batch", "data.max_tokens", *(f"optim.{name}" for name in OPTIM), "run.steps")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_system_has_the_size_it_states(file):
    row = read_system(file)
    assert row.counted == pytest.approx(row.stated, rel=0.01)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_test_that_holds_a_system_is_there(file):
    name, _, function = load_config(PretrainConfig, file).system.held_by.partition("::")
    assert f"def {function}(" in (FOLDER.parents[1] / name).read_text()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_system_says_where_its_settings_are_from(file):
    sources = read_sources(file)
    assert [name for name, tag in sources.items() if tag is None] == []
    assert [name for name in ALWAYS if name not in sources] == []  # a default is no published value


def test_all_are_there():
    found = {load_config(PretrainConfig, file).system.name for file in FILES}
    assert found == set(NAMES.split())


@pytest.fixture(scope="module")
def labels(corpus, tmp_path_factory):
    """The scenes' names, as `pretrain labels` writes them."""
    out = tmp_path_factory.mktemp("labels") / "labels.json"
    result = CliRunner().invoke(app, ["labels", str(corpus.shards), "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out


@pytest.mark.long
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_objective_of_a_small_system_learns(file, corpus, labels):
    """On one batch of scenes, which a model that is wired as it should be learns by heart."""
    config = shrink(load_config(PretrainConfig, file), labels)
    tokenizer = Tokenizer(corpus.tokenizer)
    preparation = Preparation(config, tokenizer)
    stream = ShardStream(corpus.shards, 16, seed=0, transform=preparation.transform, collate=preparation.collate)
    [batch] = list(stream.batches(1))
    torch.manual_seed(0)
    task = Task(config.model, config.objectives, len(tokenizer)).train()
    task.start_momentum()
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    first: dict[str, float] = {}
    recent: deque[dict[str, float]] = deque(maxlen=3)
    for step in range(250):
        losses = task(batch)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        task.end()
        recent.append({name: float(loss.detach()) for name, loss in losses.items()})
        if step < 3:  # the queues of contrast fill, and more candidates are harder
            first = {name: max(losses[name] for losses in recent) for name in recent[-1]}
        left = {name: sum(losses[name] for losses in recent) / len(recent) / first[name] for name in first}
        if max(left.values()) < 0.7:
            break
    assert first.keys() == {"loss", *config.objectives.chosen}
    assert max(left.values()) < 0.7, left


def test_the_command_lists_them():
    result = CliRunner().invoke(app, ["systems", "--folder", str(FOLDER), "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.output)
    assert len(rows) == len(FILES)
    assert all(re.match(r"works: tests/.*; of \d+ settings \d+ ", row["state"]) for row in rows)
    [clip] = [row for row in rows if row["name"] == "CLIP"]
    assert (clip["stream"], clip["trunk"], clip["objectives"]) == ("dual", "none", ["itc"])


def test_a_small_configuration_is_printed(labels, tmp_path):
    result = CliRunner().invoke(app, ["tiny", str(FOLDER / "uniter.yaml"), "--labels", str(labels)])
    assert result.exit_code == 0, result.output
    (tmp_path / "tiny.yaml").write_text(result.output)
    config = load_config(PretrainConfig, tmp_path / "tiny.yaml")
    names = RegionVocabulary.read(str(labels))
    assert config.objectives.mrc.classes == len(names.labels)
    assert re.fullmatch(r"[a-z]+", names.labels[0])


def test_a_folder_without_systems_is_refused(tmp_path):
    result = CliRunner().invoke(app, ["systems", "--folder", str(tmp_path)])
    assert "holds no *.yaml" in str(result.exception)
