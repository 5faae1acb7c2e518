"""Every configuration that is shipped loads, and its model can be built."""

from pathlib import Path

import pytest

from finetune.config import FinetuneConfig
from pretrain.config import PretrainConfig
from pretrain.data.tokenizer import Tokenizer
from pretrain.optim import build_optimizer, freeze
from pretrain.settings import load_config
from pretrain.task import outline

CONFIGS = Path(__file__).parents[2] / "configs"
BERT_VOCABULARY = 30522


def shipped(kind: str) -> list[Path]:
    return sorted((CONFIGS / kind).rglob("*.yaml"))


def vocabulary(place: str) -> int:
    """Tokenizers that the user trains do not exist yet; the largest usual one stands in."""
    return len(Tokenizer(place)) if place.startswith("package:") else BERT_VOCABULARY


@pytest.mark.parametrize("file", shipped("pretrain"), ids=lambda file: file.stem)
def test_a_pretraining_configuration_builds_its_model(file):
    config = load_config(PretrainConfig, file)
    task = outline(config.model, config.objectives, vocabulary(config.data.tokenizer))
    freeze(task, config.optim.freeze)
    groups = build_optimizer(task, config.optim).param_groups
    assert sum(p.numel() for group in groups for p in group["params"]) > 10_000
    assert config.data.max_tokens <= task.model.text.longest
    assert config.run.out


@pytest.mark.parametrize("file", shipped("finetune"), ids=lambda file: file.stem)
def test_a_fine_tuning_configuration_loads(file):
    config = load_config(FinetuneConfig, file)
    assert config.run.steps > 0


def test_there_is_something_shipped():
    assert {file.stem for file in shipped("pretrain")} >= {"demo", "emoji"}
    assert {file.stem for file in shipped("finetune")} >= {"demo"}
