"""From a checkpoint and a dataset folder to a published row: what is said beforehand, refused and written."""

import json

import pytest

from finetune.cli import main
from finetune.published import published_results, reproductions
from finetune.reproduce import find_system, probe
from finetune.retrieval import RetrievalSet
from tests.finetune.corpus import Corpus, checkpoint, save
from tests.pretrain.tiny import tiny_config

DUAL = {"objectives": {"itc": {}}, "model": {**tiny_config().model.model_dump(), "fusion": {"trunk": "none"}}}


@pytest.fixture(scope="module")
def flickr(tmp_path_factory):
    """As many images as the test split of Flickr30K, of twenty pictures, five texts each; more texts than that once."""
    folder = tmp_path_factory.mktemp("flickr30k")
    (folder / "images").mkdir()
    samples = Corpus(20).samples
    entries = []
    for number in range(1000):
        sample = samples[number % 20]
        (folder / "images" / f"{number}.png").write_bytes(sample.image)
        texts = [f"{caption} {number % 7}" for caption in (*sample.captions, *["a red kite"] * 5)][: 6 - (number > 0)]
        entries.append({"filename": f"{number}.png", "split": "test", "sentences": [{"raw": text} for text in texts]})
    (folder / "dataset_flickr30k.json").write_text(json.dumps({"images": entries}))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A dual encoder and one that can match."""
    return [save(checkpoint(tmp_path_factory.mktemp(name), **changes)) for name, changes in (("d", DUAL), ("m", {}))]


def on(flickr):
    return ["--data", "flickr30k", "--images", flickr / "images"]


def reproduce(*words):
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", *map(str, words)])
    return ended.value.code


def test_the_row_and_what_was_said_before(flickr, runs, tmp_path, capsys):
    words = [
        "align",
        "--data",
        "flickr30k",
        "--images",
        flickr / "images",
        "--ckpt",
        runs[0],
        "--out",
        tmp_path / "out",
    ]
    assert reproduce(*words, "--dry-run") == 0
    said = capsys.readouterr().out
    for part in (
        "ALIGN, rows flickr30k",
        "1,000 images, 5,000 texts (captions first5)",
        "the similarity of two encoders",
    ):
        assert part in said
    assert "GB are free" in said
    assert "from a probe of 16 images" in said
    assert not (tmp_path / "out").exists(), "a dry run writes nothing"

    assert reproduce(*words) == 0
    printed = capsys.readouterr().out
    assert printed.index("memory  ") < printed.index("| **ALIGN, measured** |")
    made = json.loads((tmp_path / "out" / "flickr30k.json").read_text())
    assert (made["system"], made["protocol"]["captions"], made["data"]["texts"]) == ("ALIGN", "first5", 5000)
    assert made["pretraining_data"] == next(
        row.pretraining_data for row in published_results() if row.system == "ALIGN"
    )
    row = next(line for line in printed.splitlines() if "**ALIGN" in line)
    assert f"{made['rsum']['pessimistic'] - 576.0:+.1f}" in row, "ALIGN's six figures add up to 576.0"


def test_every_pair_or_the_best_k(flickr, runs, tmp_path, capsys):
    words = ["ViLT", *on(flickr), "--ckpt", runs[1], "--out", tmp_path / "out"]
    assert reproduce(*words, "--dry-run") == 0
    assert "the matching head on every pair (5,000,000 in all)" in capsys.readouterr().out
    assert reproduce(*words, "--dry-run", "--rerank", "20") == 0
    assert "the matching head on the best 20 by similarity" in capsys.readouterr().out


def test_the_best_as_many_as_the_paper_matched(flickr, runs, tmp_path, capsys):
    words = ["ALBEF", *on(flickr), "--ckpt", runs[1], "--out", tmp_path / "out"]
    assert reproduce(*words, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "the matching head on the best 128 by similarity" in said
    assert "5,001 texts (captions all)" in said
    assert reproduce(*words, "--dry-run", "--rerank", "16") == 0
    assert "the matching head on the best 16 by similarity" in capsys.readouterr().out
    assert find_system("albef").k == {"coco": 256, "flickr30k": 128}


def test_another_method_than_the_paper_s_has_to_be_possible(flickr, runs, capsys):
    assert reproduce("ALIGN", *on(flickr), "--ckpt", runs[0], "--rerank", "16", "--dry-run") == 2
    assert "`--rerank` (=16) needs a checkpoint with a matching head" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ALINE"], "`SYSTEM` (=ALINE) must be one of ViLBERT, "),
        (["UNITER"], "needs `--annotations`: the Karpathy split file"),
        (["UNITER", "+images"], "UNITER on flickr30k needs `--ckpt`: a checkpoint folder, a run folder or USER/NAME"),
        (["ViLT", "+images", "--ckpt", "nowhere"], "`ckpt` (=nowhere) must be a checkpoint folder"),
        (["ViLT", "+images", "+dual"], "`--every-pair` needs a matching head"),
        (["VinVL", "+images", "+dual"], "`SYSTEM` (=VinVL) has no published row on flickr30k"),
    ],
)
def test_refusals(words, message, flickr, runs, tmp_path, capsys):
    given = {"+images": ["--images", flickr / "images"], "+dual": ["--ckpt", runs[0]]}
    expanded = [part for word in words for part in given.get(word, [word])]
    images = [] if "+images" in words else ["--images", tmp_path / "none"]
    out = tmp_path / "out"
    assert reproduce(*expanded, *images, "--data", "flickr30k", "--out", out) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_another_number_of_images_is_refused(flickr, runs, tmp_path, capsys):
    entries = json.loads((flickr / "dataset_flickr30k.json").read_text())["images"][:990]
    (tmp_path / "fewer.json").write_text(json.dumps({"images": entries}))
    words = ["--images", flickr / "images", "--annotations", tmp_path / "fewer.json", "--ckpt", runs[0]]
    assert reproduce("ALIGN", "--data", "flickr30k", *words) == 2
    assert "must have 1000 images; the annotations name 990" in capsys.readouterr().err


def test_all_missing_things_are_named_at_once(tmp_path, capsys):
    assert reproduce("METER", "--data", "coco", "--images", tmp_path / "none") == 2
    error = capsys.readouterr().err
    assert all(name in error for name in ("`--annotations`", "`--images`", "`--ckpt`"))


def test_every_system_with_a_published_row_has_a_recipe():
    assert {row.system for row in published_results()} == reproductions().keys()
    assert find_system("vilt").compat == "vilt"


def test_the_probe_times_all_three_kinds_of_work(tmp_path):
    speed = probe(checkpoint(tmp_path), RetrievalSet.from_source(Corpus(18)), "cpu")
    assert min(speed.image, speed.text, speed.pair) > 0
