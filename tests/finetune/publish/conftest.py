"""A hub on loopback that the client is pointed at, a checkpoint, and its export."""

import huggingface_hub.constants
import pytest

from finetune.publish import upload as module
from finetune.publish.card import Statements
from finetune.publish.export import export
from pretrain.checkpoint import load_checkpoint
from tests.finetune.corpus import Corpus, checkpoint, save
from tests.hub import WRITER, hub

STATEMENTS = Statements("apache-2.0", "40 random pictures", "cc0-1.0")
REPO = "ada/kites"


@pytest.fixture(scope="session")
def ckpt(tmp_path_factory):
    """A run folder."""
    return save(checkpoint(tmp_path_factory.mktemp("ckpt")))


@pytest.fixture(scope="session")
def opened(ckpt):
    return load_checkpoint(ckpt)


@pytest.fixture
def pictures(tmp_path):
    """Three pictures."""
    for sample in Corpus(3).samples:
        (tmp_path / f"{sample.key}.png").write_bytes(sample.image)
    return tmp_path


@pytest.fixture
def folder(opened, tmp_path):
    """An export, as `finetune publish` makes it."""
    made = tmp_path / "export"
    made.mkdir()
    export(made, opened, [], REPO, STATEMENTS)
    return made


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The hub, with the writer's token set, an empty cache, and no waiting between our own attempts."""
    monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(module, "FIRST_WAIT", 0.01)
    with hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server
