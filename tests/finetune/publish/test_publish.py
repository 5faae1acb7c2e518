"""The command from a run to the hub and back, and `transformers` on the same folder."""

import json

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import finetune.automodel  # noqa: F401  # registers the class
from pretrain.checkpoint import load_checkpoint
from shards.errors import UserError
from tests.finetune.publish.conftest import REPO
from tests.finetune.publish.test_export import FILES
from tests.finetune.search.conftest import status
from tests.hub import WRITER

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the client, at its own code
WORDS = ["--repo", REPO, "--license", "mit", "--data", "40 random pictures", "--data-license", "cc0-1.0"]


def test_publish_and_use(server, ckpt, opened, tmp_path, capsys, pictures):
    out = tmp_path / "export"
    assert status("publish", "--ckpt", ckpt, *WORDS, "--private", "--out", out, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["files"]) == FILES
    assert told["apart"] <= 1e-5
    files = server.repositories[REPO].files(told["commit"])
    assert files == {path.name: path.read_bytes() for path in out.iterdir()}
    assert server.repositories[REPO].private
    assert load_checkpoint(f"hf:{REPO}@{told['commit']}").digest == opened.digest
    index = ["index", "--ckpt", f"hf:{REPO}", "--images", pictures, "--out", tmp_path / "pictures.index", "--json"]
    assert status(*index) == 0
    made_with = json.loads(capsys.readouterr().out)["checkpoint"]
    assert (made_with["name"], made_with["place"]) == (REPO, f"hf:{REPO}@{told['commit']}")
    assert status("search", tmp_path / "pictures.index", "a dog") == 0


def test_a_dry_run_sends_nothing(server, ckpt, tmp_path, capsys):
    assert status("publish", "--ckpt", ckpt, *WORDS, "--dry-run", "--out", tmp_path / "export") == 0
    assert "dry run: nothing was sent" in capsys.readouterr().out
    assert server.requests == []
    assert {path.name for path in (tmp_path / "export").iterdir()} == FILES


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (WORDS[:2], "`--license` (=) must name the weights' licence"),
        (["--repo", "kites", *WORDS[2:]], "`--repo` (=kites) must have the form USER/NAME"),
        (["--repo", "ada/kites@v1", *WORDS[2:]], "must have the form USER/NAME"),
        ([*WORDS, "--limitations", "@nowhere.md"], "`--limitations` (=@nowhere.md) must name a file"),
        ([*WORDS, "--citation", f"@misc{{{WRITER}}}"], "must name a file"),
        ([*WORDS, "--train-command", f"HF_TOKEN={WRITER} pretrain"], "README.md looks like your own token"),
    ],
)
def test_refused_before_anything_is_sent(words, message, server, ckpt, capsys):
    assert status("publish", "--ckpt", ckpt, *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert server.requests == []


@torch.inference_mode()
def test_auto_classes_compute_what_the_checkpoint_computes(folder, opened):
    model, words = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    texts = ["a red kite", "two boat under the sky " * 9]
    tokens = words(texts, return_tensors="pt", padding=True, truncation=True)
    ids_BL, mask_BL = opened.tokenizer.batch(texts, opened.config.data.max_tokens)
    assert (tokens["input_ids"] == ids_BL).all()
    assert (tokens["attention_mask"].bool() == mask_BL).all()
    pixels = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    found = model(tokens["input_ids"], tokens["attention_mask"], pixels)
    other = load_checkpoint(folder)
    assert found["similarity"].shape == (3, 2)
    assert torch.equal(found["image_embeds"], AutoModel.from_pretrained(folder).get_image_features(pixels))
    assert model.checkpoint.digest == other.digest == opened.digest
    with pytest.raises(UserError, match=r"`device_map` \(=auto\) has no meaning"):
        AutoModel.from_pretrained(folder, device_map="auto")
