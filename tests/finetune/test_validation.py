"""Fine-tuning that is judged on validation pairs: the best checkpoint is kept, and the run may end early."""

import json

import pytest

from finetune.cli import main
from finetune.config import ValidationConfig
from finetune.evaluate import DEFAULT_RERANK, Options, evaluate
from finetune.facts import Labels
from finetune.retrieval import RetrievalSet
from finetune.validation import Validation, open_validation, rsum
from pretrain.checkpoint import find_checkpoint, load_checkpoint
from shards.errors import UserError
from tests.finetune.corpus import Corpus, checkpoint, save, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """12 images for training and 12 for validation."""
    folder = write_corpus(tmp_path_factory.mktemp("corpus"), train=12, test=12)
    entries = json.loads((folder / "dataset.json").read_text())
    for entry in entries["images"]:
        entry["split"] = "val" if entry["split"] == "test" else "train"
    (folder / "dataset.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    return save(checkpoint(tmp_path_factory.mktemp("ckpt")))


def test_the_figure_is_that_of_evaluate(tmp_path):
    ready, data = checkpoint(tmp_path), RetrievalSet.from_source(Corpus(14))
    measured = evaluate(ready, data, Labels("x", "x", "x", "", "", "x"), Options(rerank=10))
    assert rsum(ready, data, 10, every_pair=False) == pytest.approx(measured.results.rsum.pessimistic, abs=1e-9)


def run(corpus, ckpt, out, *words):
    inputs = ["--annotations", corpus / "dataset.json", "--images", corpus / "images", "--validate", "val"]
    settings = ["run.steps=6", "run.save_every=2", "run.keep_last=1", "data.global_batch=4", "optim.lr=1e-2"]
    with pytest.raises(SystemExit) as ended:
        main([str(w) for w in ["retrieval", "--ckpt", ckpt, "--out", out, *inputs, *settings, *words]])
    return ended.value.code


def lines(out):
    return [json.loads(line) for line in (out / "validation.jsonl").read_text().splitlines()]


def test_the_best_checkpoint_is_kept_and_opens(corpus, ckpt, tmp_path, capsys):
    out = tmp_path / "tuned"
    assert run(corpus, ckpt, out) == 0
    assert f"checkpoint: {out / 'best'}" in capsys.readouterr().out
    judged = lines(out)
    assert [line["step"] for line in judged] == [2, 4, 6]
    best = max(judged, key=lambda line: line["rsum"])
    assert best["best"]
    assert find_checkpoint(out) == out / "best"
    opened = load_checkpoint(out)
    assert opened.step == best["step"]
    data = open_validation(corpus / "dataset.json", corpus / "images", "train", "val")
    assert rsum(opened, data, DEFAULT_RERANK, every_pair=False) == pytest.approx(best["rsum"], abs=1e-3)


def test_a_run_that_gets_no_better_ends_early_and_a_continued_one_remembers(corpus, ckpt, tmp_path):
    """Without a learning rate no later checkpoint is better than the first."""
    out = tmp_path / "tuned"
    assert run(corpus, ckpt, out, "optim.lr=1e-30", "validation.patience=1", "run.steps=20") == 0
    assert [(line["step"], line["best"]) for line in lines(out)] == [(2, True), (4, False)]
    again = ["optim.lr=1e-30", "run.steps=20", "validation.patience=3", "--resume"]
    assert run(corpus, ckpt, out, *again) == 0
    assert [(line["step"], line["best"]) for line in lines(out)] == [(2, True), (4, False), (6, False), (8, False)]


@pytest.mark.parametrize(("split", "rule"), [("test", "a test split"), ("train", "the split that is trained on")])
def test_the_test_never_chooses(corpus, ckpt, tmp_path, capsys, split, rule):
    assert run(corpus, ckpt, tmp_path / "tuned", "--validate", split) == 2
    assert f"`--validate` (={split}) must not be {rule}" in capsys.readouterr().err
    assert not (tmp_path / "tuned").exists()


def test_a_k_that_says_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="`--rerank`"):
        Validation(RetrievalSet.from_source(Corpus(12)), tmp_path, ValidationConfig(rerank=3))
