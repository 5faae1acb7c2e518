"""`finetune hash` and indexes that use its heads, through the commands: what is found, what is refused."""

import json
import shutil

import numpy as np
import pytest

from finetune.search.head import encode_pairs
from finetune.search.index import Index
from shards.errors import UserError
from shards.sample import Sample
from shards.write import build_shards
from tests.finetune.corpus import Corpus
from tests.finetune.search.conftest import PICTURES, status


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "shards"
    build_shards(Corpus(150), folder, samples_per_shard=60)
    return folder


@pytest.fixture(scope="session")
def codes(ckpt, shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("codes") / "pairs.codes"
    assert status("hash", "--ckpt", ckpt, "--shards", shards, "--out", out, "--steps", "40") == 0
    return out


@pytest.fixture(scope="session")
def hashed(codes, ckpt, pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("hashed") / "pictures.index"
    words = ["--ckpt", ckpt, "--images", pictures, "--kind", "binary", "--codes", codes, "--out", out]
    assert status("index", *words) == 0
    return out


def test_what_a_head_says_of_itself(ckpt, shards, tmp_path, capsys):
    out = tmp_path / "pairs.codes"
    words = ["hash", "--ckpt", ckpt, "--shards", shards, "--out", out, "--bits", "128", "--steps", "20"]
    assert status(*words) == 0
    said = capsys.readouterr().out
    assert f"codes: {out}: 128 bits, learned from 150 pictures and " in said
    assert "captions held out: " in said
    assert "signs after a rotation " in said
    assert status(*words, "--overwrite", "--most", "50", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["bits"], facts["images"], facts["steps"]) == (128, 50, 20)
    assert facts == json.loads((out / "head.json").read_text())
    assert sorted(path.name for path in out.iterdir()) == ["head.json", "head.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_an_index_searches_with_it(hashed, codes, indexed, capsys):
    index = Index(hashed)
    facts = json.loads((codes / "head.json").read_text())
    assert (index.facts.kind, index.facts.bits, index.facts.head) == ("binary", 64, facts["digest"])
    assert index.nearest.head.inner is not None, "a second layer: no rotation has one"
    words = ["a red kite", "--k", "3", "--rerank", str(PICTURES), "--json"]
    found = []
    for folder in (hashed, indexed):
        assert status("search", folder, *words) == 0
        found.append([hit["key"] for hit in json.loads(capsys.readouterr().out)["hits"]])
    assert found[0] == found[1]
    assert status("search", hashed, "a dog", "--k", "2") == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_the_index_says_so(codes, ckpt, pictures, tmp_path, capsys):
    words = ["--ckpt", ckpt, "--images", pictures, "--kind", "binary", "--codes", codes, "--out", tmp_path / "index"]
    assert status("index", *words) == 0
    said = capsys.readouterr().out
    assert f"{PICTURES} pictures" in said
    assert "binary, 64 bits by a trained head" in said
    assert "recall@10 against exact search: " in said


def test_other_weights_are_refused(codes, pictures, tmp_path, capsys):
    copy = tmp_path / "copy.codes"
    shutil.copytree(codes, copy)
    facts = json.loads((copy / "head.json").read_text())
    facts["checkpoint"]["digest"] = "0" * 64
    (copy / "head.json").write_text(json.dumps(facts))
    place = facts["checkpoint"]["place"]
    words = ["--ckpt", place, "--images", pictures, "--kind", "binary", "--codes", copy, "--out", tmp_path / "index"]
    assert status("index", *words) == 2
    assert f"`codes` (={copy}) was made with weights 000000000000 (tiny-run, step 7)" in capsys.readouterr().err
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("name", ["head.json", "head.safetensors"])
@pytest.mark.parametrize("damage", [lambda old: old[:40], lambda old: old[:-1] + b"?", lambda _: b""])
def test_damage_is_one_sentence(name, damage, codes, ckpt, pictures, tmp_path, capsys):
    copy = tmp_path / "copy.codes"
    shutil.copytree(codes, copy)
    (copy / name).write_bytes(damage((copy / name).read_bytes()))
    words = ["--ckpt", ckpt, "--images", pictures, "--kind", "binary", "--codes", copy, "--out", tmp_path / "index"]
    assert status("index", *words) == 2
    error = capsys.readouterr().err
    assert f"`codes` (={copy}) is damaged" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "index").exists()


def test_a_damaged_head_of_an_index_is_one_sentence(hashed, tmp_path, capsys):
    copy = tmp_path / "copy.index"
    shutil.copytree(hashed, copy)
    (copy / "head.safetensors").write_bytes(b"no")
    assert status("search", copy, "a dog") == 2
    error = capsys.readouterr().err
    assert f"`index` (={copy}) is damaged" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give either `--annotations` with `--images` or `--shards`; neither was given"),
        (["--shards", "+shards", "--bits", "100"], "`--bits` (=100) must be a multiple of 64"),
        (["--shards", "+shards", "--steps", "0"], "Invalid value for '--steps'"),
    ],
)
def test_hash_refuses(words, message, ckpt, shards, tmp_path, capsys):
    given = {"+shards": shards}
    assert status("hash", "--ckpt", ckpt, "--out", tmp_path / "out", *[given.get(word, word) for word in words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


class _Pictures(Corpus):
    """Without captions, or with a picture that cannot be read."""

    def __init__(self, captions=(), damaged=None):
        super().__init__(30)
        self.captions, self.damaged = captions, damaged

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        image = b"no picture" if index == self.damaged else sample.image
        return Sample(sample.key, image, "png", self.captions or ())


def test_pairs_are_every_caption_of_every_sound_picture(searcher, capsys):
    source = Corpus(30)
    pairs = encode_pairs(searcher.encoder, source, 100)
    captions = [text for sample in source.samples for text in sample.captions]
    distinct = list(dict.fromkeys(captions))
    assert [distinct[text] for text in pairs.text_P] == captions
    assert pairs.image_P.tolist() == [i for i, sample in enumerate(source.samples) for _ in sample.captions]
    assert pairs.text_TE.shape == (len(distinct), searcher.encoder.embedding_dim)
    without = encode_pairs(searcher.encoder, _Pictures(("a dog", " "), damaged=7), 100)
    assert "left out: sample 7: " in capsys.readouterr().err
    rows = [i for i in range(30) if i != 7]
    assert np.allclose(without.image_IE, pairs.image_IE[rows], atol=1e-5)
    assert without.text_P.tolist() == [0] * 29
    with pytest.raises(UserError, match="has no captions, and a hash head learns from pairs"):
        encode_pairs(searcher.encoder, _Pictures(), 100)
