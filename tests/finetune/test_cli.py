"""The command line: refusals in one sentence with status 2 before anything is written, and both commands end to end."""

import json
import subprocess
import sys

import pytest

from finetune.cli import main
from finetune.config import FinetuneConfig, RetrievalData, pretrain_config
from pretrain.config import DataConfig
from pretrain.settings import load_config
from shards.errors import UserError
from tests.finetune.corpus import checkpoint, save, write_corpus
from tests.pretrain.tiny import tiny_config


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A Karpathy-form corpus on disk: 16 images for training, 12 for testing."""
    return write_corpus(tmp_path_factory.mktemp("corpus"), train=16, test=12)


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    """An untrained checkpoint on disk, in a run folder."""
    return save(checkpoint(tmp_path_factory.mktemp("ckpt")))


def status(*words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return ended.value.code


@pytest.fixture
def common(corpus):
    return ["--annotations", corpus / "dataset.json", "--images", corpus / "images"]


def test_evaluate_table_report(ckpt, common, tmp_path, capsys):
    out = tmp_path / "results" / "results.json"
    assert status("evaluate", "--ckpt", ckpt, *common, "--out", out, "--rerank", 10, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(out.read_text())
    assert (printed["name"], printed["protocol"]["rerank"], printed["data"]["images"]) == ("tiny-run", 10, 12)
    assert printed["data"]["dataset"].endswith("/dataset test")
    assert not list(out.parent.glob(".*")), "no temporary file is left"

    assert status("evaluate", "--ckpt", ckpt, *common, "--out", out) == 2
    assert "must not exist yet" in capsys.readouterr().err
    assert status("evaluate", "--ckpt", ckpt, *common, "--out", out, "--overwrite", "--name", "again") == 0
    assert "RSUM" in capsys.readouterr().out

    assert status("table", out) == 0
    assert "| **again**" in capsys.readouterr().out
    assert status("table", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["system"] == "again"
    as_globbed = sorted(out.parent.glob("results*.json"))
    assert len(as_globbed) == 2, "the gallery lies beside the figures"
    assert status("table", *as_globbed) == 0
    assert capsys.readouterr().out.count("**again**") == 1
    assert status("compare", out, out) == 0
    assert "both are the same checkpoint" in capsys.readouterr().out
    page = tmp_path / "report.html"
    assert status("report", *as_globbed, "--out", page) == 0
    assert page.read_text().count("data:image/jpeg") > 20


def test_published_evaluators_and_comparison(ckpt, common, tmp_path, capsys):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    words = ["evaluate", "--ckpt", ckpt, *common, "--compat", "albef", "--compat", "open_clip", "--compat", "uniter"]
    assert status(*words, "--out", first) == 0
    assert "as albef prints it: " in capsys.readouterr().out
    made = json.loads(first.read_text())
    assert [mode["mode"] for mode in made["compatibility"]] == ["albef", "open_clip", "uniter"]
    assert first.with_suffix(".ranks.npz").stat().st_size < 4000
    assert status("evaluate", "--ckpt", ckpt, *common, "--rerank", 0, "--out", second) == 0
    capsys.readouterr()
    assert status("compare", first, second) == 2
    assert "`protocol.rerank` must be the same" in capsys.readouterr().err
    assert status("compare", first, second, "--any-rerank", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["warning"].endswith("re-ranked differently")
    assert found["differences"][6]["first"] == made["rsum"]["pessimistic"]


def test_retrieval_trains_and_refuses_a_used_folder(ckpt, common, tmp_path, capsys):
    out = tmp_path / "tuned"
    words = [
        "retrieval",
        "--ckpt",
        ckpt,
        *common,
        "--out",
        out,
        "run.steps=2",
        "data.global_batch=4",
        "run.log_every=1",
    ]
    assert status(*words) == 0
    assert (out / "checkpoints" / "latest").read_text().strip() == "step-00000002"
    assert [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()] == [1, 2]
    assert "checkpoint: " in capsys.readouterr().out
    assert status(*words) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert status(*words, "--resume", "--overwrite") == 2
    assert status("evaluate", "--ckpt", out, *common, "--out", tmp_path / "r.json", "--rerank", 0) == 0
    assert json.loads((tmp_path / "r.json").read_text())["name"] == "tuned"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ckpt", "nowhere", "+common"], "`ckpt` (=nowhere) must be a checkpoint folder"),
        (["+ckpt"], "give either `--annotations` with `--images` or `--shards`; neither was given"),
        (["+ckpt", "+common", "--shards", "x"], "both were given"),
        (["+ckpt", "--annotations", "x.json"], "`--annotations` needs `--images`"),
        (["+ckpt", "+annotations", "--images", "nowhere"], "`images` (=nowhere) must be a folder"),
        (["+ckpt", "+common", "--split", "vla"], "`split` (=vla) must name images"),
        (["+ckpt", "+common", "--rerank", "5"], "`--rerank` (=5) must be 0 (off) or at least 10"),
        (["+ckpt", "+common", "--compat", "albfe"], "did you mean `albef`"),
        (["+ckpt", "+common", "--compat", "albef", "--rerank", "0"], "it needs a matching head and `--rerank` above 0"),
        (["+ckpt", "+common", "--compat", "vse++"], "counts on 5 captions of each image; one image has 1"),
        (["+ckpt", "+common", "--compat-images", "nowhere"], "`--compat-images` (=nowhere) is not a file"),
        (["+ckpt", "+common", "--system", "Vilt"], "did you mean `ViLT`"),
        (["+ckpt", "+common", "--dataset", "coco_5k"], "must have 5000 images; the data has 12"),
        (["+ckpt", "+common", "--device", "tpu"], "`--device` (=tpu) must be cpu"),
    ],
)
def test_evaluate_refuses(words, message, ckpt, common, tmp_path, capsys):
    given = {"+ckpt": ["--ckpt", ckpt], "+common": common, "+annotations": common[:2]}
    expanded = [part for word in words for part in given.get(word, [word])]
    out = tmp_path / "made" / "results.json"
    assert status("evaluate", *expanded, "--out", out) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.strip().count("\n") == 0 or "split" in message or "captions of" in message
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.learning_rate=1", "`optim.learning_rate` is not a known key"),
        ("objective.itm=null", "did you mean `objectives`"),
        ("data.shards=x", "`data.shards` is not a known key"),
        ("data.global_batch=0", "`data.global_batch` (=0) is refused"),
    ],
)
def test_retrieval_refuses(override, message, ckpt, common, tmp_path, capsys):
    out = tmp_path / "tuned"
    assert status("retrieval", "--ckpt", ckpt, *common, "--out", out, override) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_the_configuration_that_is_trained():
    base = tiny_config()
    chosen = load_config(FinetuneConfig, None, ["optim.clip=2", "data.group_by=concept", "run.out=tuned"])
    made = pretrain_config(chosen, base, "")
    assert made.model == base.model
    assert (made.optim.lr, made.optim.clip) == (1e-5, 2.0), "a setting leaves the other defaults of its section alone"
    assert made.objectives.itc is not None
    assert made.objectives.itm is not None
    assert made.objectives.mlm is None
    assert (made.data.max_tokens, made.data.group_by) == (base.data.max_tokens, "concept")


def test_heads_and_shapes_of_images_are_those_of_the_checkpoint():
    """X-VLM's matching has two layers, ViLT's images keep their aspect."""
    shape = {"shortest_edge": 32, "longest_edge": 64}
    model = tiny_config().model.model_dump() | {"vision": {"patch": {"size": 16, "width": 32}}}
    base = tiny_config(objectives={"itc": {}, "itm": {"head": "mlp"}}, model=model, data={"image_shape": shape})
    made = pretrain_config(load_config(FinetuneConfig, None, []), base, "")
    assert made.objectives.itm.head == "mlp"
    assert made.data.image_shape == base.data.image_shape


def test_batching_settings_are_those_of_pretraining():
    """Listed again without what fine-tuning takes from elsewhere; `max_tokens` alone has another default."""
    ours, theirs = RetrievalData().model_dump(), DataConfig().model_dump()
    taken = {"tokenizer", "second", "regions", "image_shape"}
    assert theirs.keys() - ours.keys() == {"shards", "cache", "cache_gigabytes", *taken}
    assert {name for name in ours if ours[name] != theirs[name]} == {"max_tokens"}


def test_a_dual_encoder_has_nothing_to_match():
    dual = tiny_config(objectives={"itc": {}}, model={**tiny_config().model.model_dump(), "fusion": {"trunk": "none"}})
    with pytest.raises(UserError, match=r"pass objectives\.itm=null"):
        pretrain_config(FinetuneConfig(), dual, "")
    pretrain_config(load_config(FinetuneConfig, None, ["objectives.itm=null"]), dual, "")


def test_json_is_all_that_is_printed(ckpt, common, tmp_path):
    """In a process of its own: libraries print when they are first imported."""
    words = ["evaluate", "--ckpt", ckpt, *common, "--out", tmp_path / "results.json", "--json"]
    command = [sys.executable, "-m", "finetune.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["command"].startswith("finetune evaluate --ckpt")


def test_help_is_quick_and_shows_an_example():
    code = "import sys, finetune.cli, contextlib\n"
    code += "with contextlib.suppress(SystemExit): finetune.cli.main(['evaluate', '--help'])\n"
    code += "assert 'torch' not in sys.modules and 'numpy' not in sys.modules, 'help must not wait for torch'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Example: finetune evaluate --ckpt" in " ".join(done.stdout.split())
