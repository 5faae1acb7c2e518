"""The folder: what it holds, what is refused before it leaves, and the process that opens it."""

import json
import pickle
import shutil
import zipfile
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from finetune.publish.card import Statements, model_card, reproducing_command
from finetune.publish.check import check_folder, find_secret
from finetune.publish.export import check_source, export, portable, read_measured
from finetune.publish.probe import compare, outputs, reload_and_compare
from finetune.results import CheckpointFacts
from pretrain.checkpoint import load_checkpoint
from pretrain.config import PretrainConfig
from pretrain.settings import parse_config
from shards.errors import Stopped, UserError
from tests.finetune.conftest import build
from tests.finetune.publish.conftest import REPO, STATEMENTS

FILES = {
    *("README.md", "config.json", "config.yaml", "model.safetensors", "preprocessing.json", "state.json"),
    *("tokenizer.json", "tokenizer_config.json"),
}


def measured_file(tmp_path, digest, name="results.json", **changes):
    facts = CheckpointFacts(digest=digest, run="run", name="step-7", step=7)
    file = tmp_path / name
    file.write_text(build(checkpoint=facts, **changes).model_dump_json())
    return file


def test_an_export_is_a_checkpoint_that_computes_the_same(folder, opened):
    assert {path.name for path in folder.iterdir()} == FILES
    again = load_checkpoint(folder)
    assert again.digest == opened.digest
    assert compare(outputs(opened), outputs(again)) == 0
    assert set(outputs(opened)) == {"text_tokens", "image_tokens", "text", "image", "match"}
    check_folder(folder, [])


def test_a_fresh_process_must_open_it(folder, opened):
    """That a sound one is opened, `test_publish.py` sees."""
    (folder / "tokenizer.json").unlink()
    with pytest.raises(Stopped, match=r"cannot be opened by a fresh process, so nothing is sent: .*tokenizer.json"):
        reload_and_compare(folder, opened)


def test_other_outputs_are_found(opened):
    expected = outputs(opened)
    with pytest.raises(Stopped, match="computes another `match`"):
        compare(expected, {**expected, "match": expected["match"] + 1e-4})
    with pytest.raises(Stopped, match="computes another `text`"):
        compare(expected, {**expected, "text": expected["text"] * torch.nan})
    with pytest.raises(Stopped, match=r"other outputs than the checkpoint \(match\)"):
        compare(expected, {name: value for name, value in expected.items() if name != "match"})


def test_the_same_bytes_each_time(folder, opened, tmp_path):
    again = tmp_path / "again"
    again.mkdir()
    export(again, opened, [], REPO, STATEMENTS)
    assert all((again / name).read_bytes() == (folder / name).read_bytes() for name in FILES)


def test_no_place_of_this_machine(folder, opened):
    data = opened.config.data.model_copy(update={"shards": "/home/ada/shards", "tokenizer": "/home/ada/t.json"})
    run = opened.config.run.model_copy(update={"out": "/home/ada/run"})
    config = portable(opened.config.model_copy(update={"data": data, "run": run}))
    assert "/home" not in config.model_dump_json()
    assert config.data.max_tokens == opened.config.data.max_tokens
    labels = parse_config(PretrainConfig, {"data": {"regions": {"labels": "labels.json"}}})
    with pytest.raises(UserError, match="reads region labels"):
        portable(labels)


def test_results_must_be_of_these_weights(opened, tmp_path):
    first = measured_file(tmp_path, opened.digest)
    second = measured_file(tmp_path, opened.digest, "second.json", dataset="flickr30k")
    found = read_measured([first, second], opened)
    assert [one.name for one in found] == ["results.json", "results-2.json"]
    with pytest.raises(UserError, match="measured weights 000000000000, but the checkpoint has"):
        read_measured([measured_file(tmp_path, "0" * 64)], opened)


def test_the_card_says_what_was_measured(opened, tmp_path):
    measured = read_measured([measured_file(tmp_path, opened.digest)], opened)
    folder = tmp_path / "with-results"
    folder.mkdir()
    export(folder, opened, measured, REPO, replace(STATEMENTS, train_command="pretrain --config a.yaml"))
    card = (folder / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    front = yaml.safe_load(front)
    assert (front["license"], front["library_name"]) == ("apache-2.0", "duostream")
    metrics = {m["name"]: m["value"] for m in front["model-index"][0]["results"][0]["metrics"]}
    assert metrics["text_to_image R@5"] == 85.0
    assert metrics["RSUM"] == 492.5
    row = (
        "| scenes | 500 / 2500 | 70.0 | 90.0 | 95.5 | 60.0 | 85.0 | 92.0 | **492.5** | 484.2 to 500.8 | re-ranked k=32"
    )
    assert row in body
    assert f"$ finetune evaluate --ckpt hf:{REPO} --shards test --out results.json" in body
    for text in ("40 random pictures", "cc0-1.0", "## Limitations", "@misc{ada-kites", "pretrain --config a.yaml"):
        assert text in body
    kept = json.loads((folder / "results.json").read_text())
    assert kept["examples_i2t"] == {"sample": [], "worst": []}, "captions of the corpus stay at home"
    check_folder(folder, [])
    assert "Not measured by its publisher" in model_card(opened, [], REPO, STATEMENTS)


def test_the_command_names_the_published_checkpoint():
    results = build(command="finetune evaluate --ckpt=runs/a --out 'my results.json'")
    assert reproducing_command(results, REPO) == f"finetune evaluate --ckpt=hf:{REPO} --out 'my results.json'"


@pytest.mark.parametrize(
    ("statements", "option"),
    [
        (Statements("", "a", "b"), "--license"),
        (Statements("Apache 2", "a", "b"), "--license"),
        (Statements("mit", " ", "b"), "--data"),
        (Statements("mit", "a", ""), "--data-license"),
    ],
)
def test_statements_are_needed(statements, option):
    with pytest.raises(UserError, match=f"`{option}`"):
        statements.check()


def keyed(kind):
    """Strings of the forms that services issue, put together here so that no scanner takes them for real ones."""
    letters = "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zA"
    return {
        "hub": "hf_" + letters,
        "github": "ghp_" + letters + "1234",
        "openai": "sk-" + "proj-" + letters,
        "aws": "AKIA" + "ABCDEFGHIJKLMNOP",
        "google": "AIza" + letters + "abc",
        "url": "https://ada:" + "secret@host/x",
        "pem": "-----BEGIN RSA PRIVATE" + " KEY-----",
        "named": "wandb_key: " + letters,
        "jwt": "eyJ" + letters + ".eyJ" + letters + ".x",
    }[kind]


@pytest.mark.parametrize("kind", ["hub", "github", "openai", "aws", "google", "url", "pem", "named", "jwt"])
def test_secrets_are_found(kind, folder):
    secret = keyed(kind)
    card = folder / "README.md"
    card.write_text(card.read_text() + f"\nrun it with {secret}\n")
    with pytest.raises(UserError, match=r"line \d+ of README.md looks like") as refused:
        check_folder(folder, [])
    assert secret not in str(refused.value)


def test_a_secret_in_the_weights_header_or_ones_own(folder):
    weights = folder / "model.safetensors"
    save_file(load_file(weights), weights, metadata={"note": keyed("hub")})
    with pytest.raises(UserError, match=r"model.safetensors looks like a hub token"):
        check_folder(folder, [])
    assert find_secret("my token is plainword", ["plainword"]) == "your own token"


def test_harmless_text_is_no_secret():
    harmless = (
        "max_tokens: 40\ntokenizer: tokenizer.json\npad_token: '[PAD]'\nsecret santa; http://host/a?b=c@d; skeleton"
    )
    assert find_secret(harmless, ["", ""]) is None


def as_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"x")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "notes.txt").write_text("x"), "notes.txt is not among the files that are published"),
        (lambda f: (f / "README.md").unlink(), "the export lacks README.md"),
        (lambda f: (f / "results.json").symlink_to(f / "config.json"), "results.json is no plain file"),
        (lambda f: (f / "results.json").write_bytes(pickle.dumps([1])), "results.json is a pickle"),
        (lambda f: as_zip(f / "results.json"), "results.json is a pickle"),
        (lambda f: torch.save({}, f / "model.safetensors"), "model.safetensors is a pickle"),
        (lambda f: (f / "model.safetensors").write_bytes(b"short"), "model.safetensors is not what its name says"),
        (lambda f: (f / "config.yaml").write_bytes(b"\xff\xfe"), "config.yaml is not what its name says"),
    ],
)
def test_what_must_not_leave(spoil, message, folder):
    spoil(folder)
    with pytest.raises(UserError, match=message):
        check_folder(folder, [])


def test_a_checkpoint_folder_with_more_in_it_is_refused(opened, tmp_path):
    mine = tmp_path / "step-7"
    shutil.copytree(opened.path, mine)
    (mine / "trainer").mkdir()
    check_source(mine)
    torch.save({}, mine / "old.pt")
    with pytest.raises(UserError, match=r"holds old.pt, which is no part of a checkpoint"):
        check_source(mine)
