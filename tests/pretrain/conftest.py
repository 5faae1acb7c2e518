"""A tiny generated corpus with its tokenizer, and configurations that train on it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pretrain.config import PretrainConfig
from pretrain.settings import load_config
from shards.sources.scenes import ScenesSource
from shards.tokenizer import write_tokenizer
from shards.write import build_shards
from tests.pretrain.tiny import write_tiny


@dataclass(frozen=True)
class Corpus:
    """Where the generated inputs of the tests lie."""

    shards: Path
    tokenizer: Path
    config: Path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """64 scenes in two shards, a tokenizer of their words, and the file of a tiny model that reads both."""
    root = tmp_path_factory.mktemp("corpus")
    shards, tokenizer = root / "shards", root / "tokenizer.json"
    build_shards(ScenesSource(64, seed=0, split="train", size=48), shards, samples_per_shard=32)
    write_tokenizer(shards, tokenizer, vocab_size=300)
    return Corpus(shards, tokenizer, write_tiny(root / "tiny.yaml", shards, tokenizer))


Configure = Callable[..., PretrainConfig]


@pytest.fixture
def configure(corpus: Corpus, tmp_path: Path) -> Configure:
    """Builds a configuration on the corpus from overrides; the run folder is `tmp_path/run` unless given."""

    def build(*overrides: str) -> PretrainConfig:
        return load_config(PretrainConfig, corpus.config, [f"run.out={tmp_path / 'run'}", *overrides])

    return build
