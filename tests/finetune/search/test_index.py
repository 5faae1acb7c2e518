"""Indexes on disk, through the commands: what they hold, that they appear whole, and what is refused."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from finetune.search import build as module
from finetune.search.gallery import PictureFolder
from finetune.search.index import Index
from shards.errors import UserError
from shards.write import build_shards
from tests.finetune.corpus import Corpus
from tests.finetune.search.conftest import PICTURES, status


def test_what_an_index_holds(indexed, pictures):
    index = Index(indexed)
    assert (index.facts.kind, index.facts.images, index.facts.source.left_out) == ("exact", PICTURES, 1)
    assert index.facts.agreement is not None
    assert index.facts.agreement.found == 1.0
    assert np.allclose(np.linalg.norm(index.embedding_IE, axis=1), 1, atol=1e-5)
    by_key = dict(zip(index.items.keys, index.items.captions, strict=True))
    assert by_key["image-39"] == ""
    assert by_key["image-1"] == "two boat"
    for row in (0, PICTURES - 1):
        assert index.picture(row).key == index.items.keys[row]
        thumbnail = Image.open(io.BytesIO(index.thumbnail(row)))
        assert (thumbnail.format, thumbnail.size) == ("JPEG", (32, 32))
    assert [path.name for path in indexed.parent.iterdir()] == [indexed.name], "nothing is left beside it"


def test_shards_and_a_folder_give_one_index(indexed, ckpt, tmp_path, capsys):
    build_shards(Corpus(PICTURES), tmp_path / "shards", samples_per_shard=15)
    out = tmp_path / "shards.index"
    assert status("index", "--ckpt", ckpt, "--shards", tmp_path / "shards", "--out", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["images"] == PICTURES
    ours, theirs = Index(out), Index(indexed)
    place = {key: row for row, key in enumerate(theirs.items.keys)}
    rows = [place[key] for key in ours.items.keys]
    assert np.allclose(ours.embedding_IE, theirs.embedding_IE[rows], atol=1e-5)


@pytest.mark.parametrize("kind", ["hnsw", "binary"])
def test_search_by_the_command(kind, pictures, ckpt, indexed, tmp_path, capsys):
    if kind == "hnsw":
        pytest.importorskip("faiss")
    out = tmp_path / "other.index"
    assert status("index", "--ckpt", ckpt, "--images", pictures, "--out", out, "--kind", kind) == 0
    said = capsys.readouterr()
    assert "recall@10 against exact search: " in said.out
    assert "left out: 1 pictures" in said.out
    assert "left out: picture 0: the image cannot be decoded" in said.err
    words = ["a red kite", "--k", "3", "--rerank", "20", "--json"]
    assert status("search", out, *words) == 0
    found = json.loads(capsys.readouterr().out)
    assert status("search", indexed, *words) == 0
    assert [hit["key"] for hit in found["hits"]] == [h["key"] for h in json.loads(capsys.readouterr().out)["hits"]]
    assert found["milliseconds"].keys() == {"encode", "search", "rerank"}
    assert status("search", out, "--image", pictures / "image-4.png", "--k", "2") == 0
    assert capsys.readouterr().out.split()[:3] == ["1", "1.000", "image-4"]


def test_an_index_appears_whole_or_not_at_all(pictures, ckpt, tmp_path, monkeypatch, capsys):
    out = tmp_path / "mine" / "pictures.index"
    words = ["index", "--ckpt", ckpt, "--images", pictures, "--out", out]

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_index", full)
        assert status(*words) == 2
        assert "cannot be written: no space left on device" in capsys.readouterr().err
        assert list(out.parent.iterdir()) == []
    assert status(*words) == 0
    before = (out / "index.json").read_bytes()
    assert status(*words) == 2
    assert "must not exist yet; replace it with --overwrite" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_index", full)
        assert status(*words, "--overwrite") == 2
    assert (out / "index.json").read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert status(*words, "--overwrite", "--kind", "binary") == 0
    assert Index(out).facts.bits == 64
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_a_folder_that_is_no_index_is_not_replaced(pictures, ckpt, tmp_path, capsys):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    words = ["--ckpt", ckpt, "--images", pictures, "--out", tmp_path / "letters", "--overwrite"]
    assert status("index", *words) == 2
    assert "holds no index.json, so it is not replaced" in capsys.readouterr().err
    assert (tmp_path / "letters" / "a.txt").read_text() == "dear"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give either `--shards` or `--images`; neither was given"),
        (["--images", "+pictures", "--shards", "x"], "both were given"),
        (["--images", "nowhere"], "`images` (=nowhere) must be a folder"),
        (["--images", "+empty"], "must hold images"),
        (["--images", "+pictures", "--bits", "64"], "`--bits` (=64) is for `--kind binary`; this is exact"),
        (["--images", "+pictures", "--codes", "x"], "`--codes` (=x) is for `--kind binary`; this is exact"),
        (
            ["--images", "+pictures", "--kind", "binary", "--codes", "x", "--bits", "64"],
            "`--bits` (=64) is decided by the head of `--codes` (=x)",
        ),
        (
            ["--images", "+pictures", "--kind", "binary", "--codes", "x"],
            "`codes` (=x) must be a folder that `finetune hash` wrote",
        ),
        (["--images", "+pictures", "--kind", "binary", "--bits", "100"], "`--bits` (=100) must be a multiple of 64"),
    ],
)
def test_index_refuses(words, message, pictures, ckpt, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    given = {"+pictures": pictures, "+empty": tmp_path / "empty"}
    assert status("index", "--ckpt", ckpt, "--out", tmp_path / "out", *[given.get(word, word) for word in words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["index.json", "embeddings.npy", "items.parquet", "thumbnails.npy"])
def test_damage_is_one_sentence(name, indexed, tmp_path, capsys):
    copy = tmp_path / "copy.index"
    shutil.copytree(indexed, copy)
    (copy / name).write_bytes((copy / name).read_bytes()[:40])
    assert status("search", copy, "a dog") == 2
    error = capsys.readouterr().err
    assert f"`index` (={copy}) is damaged" in error
    assert error.count("\n") == 1


def test_search_refuses_other_weights_and_other_pictures(pictures, ckpt, tmp_path, capsys):
    mine = tmp_path / "pictures"
    shutil.copytree(pictures, mine)
    out = tmp_path / "out.index"
    assert status("index", "--ckpt", ckpt, "--images", mine, "--out", out) == 0
    (mine / "image-3.png").write_bytes((mine / "image-4.png").read_bytes() + b"more")
    assert status("search", out, "a dog") == 0, "plain search needs no pictures"
    capsys.readouterr()
    assert status("search", out, "a dog", "--rerank", "10") == 2
    assert "have changed in" in capsys.readouterr().err
    shutil.rmtree(mine)
    assert status("search", out, "a dog", "--rerank", "10") == 2
    assert "cannot be opened: `images`" in capsys.readouterr().err
    facts = json.loads((out / "index.json").read_text())
    facts["checkpoint"]["digest"] = "0" * 64
    (out / "index.json").write_text(json.dumps(facts))
    assert status("search", out, "a dog") == 2
    assert "was made with weights 000000000000 (tiny-run, step 7)" in capsys.readouterr().err
    assert status("search", tmp_path, "a dog") == 2
    assert "must be a folder that `finetune index` wrote" in capsys.readouterr().err


def test_pictures_that_are_all_damaged(ckpt, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"no")
    assert status("index", "--ckpt", ckpt, "--images", tmp_path, "--out", tmp_path / "out") == 1
    assert "none of the 1 pictures" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_without_pictures(tmp_path):
    (tmp_path / "a.txt").write_text("a caption alone")
    with pytest.raises(UserError, match="must hold images"):
        PictureFolder(tmp_path)
