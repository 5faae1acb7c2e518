"""A folder of pictures with captions beside most of them, an untrained checkpoint, and an index of both."""

import pytest

from finetune.cli import main
from finetune.search.query import Searcher
from tests.finetune.corpus import Corpus, checkpoint, save

PICTURES = 40


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """40 pictures, the last without captions, and one file that is no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    for sample in Corpus(PICTURES).samples:
        (folder / f"{sample.key}.png").write_bytes(sample.image)
        if sample.key != "image-39":
            (folder / f"{sample.key}.txt").write_text("\n".join(sample.captions))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    return folder


@pytest.fixture(scope="session")
def ckpt(tmp_path_factory):
    """A run folder."""
    return save(checkpoint(tmp_path_factory.mktemp("ckpt")))


@pytest.fixture(scope="session")
def indexed(pictures, ckpt, tmp_path_factory):
    """The folder of an exact index, made by the command."""
    out = tmp_path_factory.mktemp("indexed") / "pictures.index"
    assert status("index", "--ckpt", ckpt, "--images", pictures, "--out", out) == 0
    return out


@pytest.fixture
def searcher(indexed):
    return Searcher.open(indexed)


def status(*words):
    """The exit status of `finetune`."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return ended.value.code
