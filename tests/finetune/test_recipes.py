"""The published fine-tuning recipes: each fits its system at full size, and learns in small."""

from collections import deque
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from finetune.config import FinetuneConfig, pretrain_config
from pretrain.cli import app
from pretrain.config import PretrainConfig
from pretrain.data.loader import Preparation
from pretrain.data.tokenizer import Tokenizer
from pretrain.settings import load_config
from pretrain.sources import read_sources
from pretrain.systems import shrink
from pretrain.task import Task, outline
from shards.sources.scenes import ScenesSource
from shards.stream import ShardStream
from shards.tokenizer import write_tokenizer
from shards.write import build_shards
from tests.end_to_end.test_shipped_configs import CONFIGS
from tests.pretrain.test_systems import ALWAYS

RECIPES = {
    "albef": "albef",
    "blip": "blip",
    "x_vlm": "x_vlm",
    "vilt": "vilt",
    "meter": "meter",
    "uniter": "uniter",
    "uniter_hard": "uniter",
    "oscar": "vinvl",
    "vilbert": "vilbert",
    "unimo": "unicoder_vl",
    "clip": "align",
    "vlmo": "clip",
    "vse": "clip",
}
"""Recipe -> a system that it fine-tunes."""


def chosen(recipe: str) -> PretrainConfig:
    system = load_config(PretrainConfig, CONFIGS / "systems" / f"{RECIPES[recipe]}.yaml")
    config = load_config(FinetuneConfig, CONFIGS / "finetune" / f"{recipe}.yaml", [])
    if system.model.text.kind == "clip":  # its positions end at 77
        assert config.data.max_tokens <= 77
    return pretrain_config(config, system, "").model_copy(update={"system": system.system})


def test_every_recipe_is_tested():
    shipped = {file.stem for file in (CONFIGS / "finetune").glob("*.yaml")}
    assert shipped - {"demo", "emoji"} == RECIPES.keys()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_fits_its_system(recipe):
    config = chosen(recipe)
    task = outline(config.model, config.objectives, config.system.vocabulary)
    assert task.matcher is not None or config.model.embedding_dim is not None
    assert config.run.steps > 1000


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_says_where_its_settings_are_from(recipe):
    sources = read_sources(CONFIGS / "finetune" / f"{recipe}.yaml")
    assert [name for name, tag in sources.items() if tag is None] == []
    assert [name for name in ALWAYS if name not in sources] == []  # a default is no published value


@dataclass(frozen=True)
class Scenes:
    """Scenes in a shard, their words, and the names of their regions."""

    shards: Path
    tokenizer: Path
    labels: Path


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    root = tmp_path_factory.mktemp("scenes")
    made = Scenes(root / "shards", root / "tokenizer.json", root / "labels.json")
    build_shards(ScenesSource(64, seed=0, split="train", size=48), made.shards)
    write_tokenizer(made.shards, made.tokenizer, vocab_size=300)
    result = CliRunner().invoke(app, ["labels", str(made.shards), "--out", str(made.labels)])
    assert result.exit_code == 0, result.output
    return made


@pytest.mark.long
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_learns_in_small(recipe, scenes):
    config = shrink(chosen(recipe), scenes.labels)
    if config.objectives.triplet:  # from random weights the hardest negatives pull all vectors into one
        triplet = config.objectives.triplet.model_copy(update={"hardest": False})
        config = config.model_copy(update={"objectives": config.objectives.model_copy(update={"triplet": triplet})})
    tokenizer = Tokenizer(scenes.tokenizer)
    preparation = Preparation(config, tokenizer)
    stream = ShardStream(scenes.shards, 16, seed=0, transform=preparation.transform, collate=preparation.collate)
    [batch] = list(stream.batches(1))
    torch.manual_seed(0)
    task = Task(config.model, config.objectives, len(tokenizer)).train()
    task.start_momentum()
    # The circle loss is flat around equal scores and steep beside them.
    lr, steps = (5e-4, 400) if recipe == "unimo" else (1e-3, 250)
    optimizer = torch.optim.AdamW(task.parameters(), lr=lr)
    first, recent = 0.0, deque([1e9], maxlen=3)
    for step in range(steps):
        loss = task(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        task.end()
        recent.append(loss.item())
        if step == 3:  # queues have filled
            first = max(list(recent))
        if step > 3 and sum(recent) / len(recent) < 0.7 * first:
            break
    assert sum(recent) / len(recent) < 0.7 * first
