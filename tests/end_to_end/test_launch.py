"""The commands that the README names, literally, made small by overrides."""

import math
import subprocess
from pathlib import Path

import pytest

from pretrain.checkpoint import load_checkpoint
from tests.pretrain.conftest import Corpus
from tests.pretrain.runs import files, logged, weights
from tests.ranks import ROOT, environment, free_port, run_module

pytestmark = pytest.mark.slow
COMMANDS = {
    "one": "deepspeed {port} launch/pretrain.sh --config configs/pretrain/demo.yaml",
    "two": "deepspeed --num_gpus 2 {port} launch/pretrain.sh --config configs/pretrain/demo.yaml",
    "bash": "bash launch/pretrain.sh --config configs/pretrain/demo.yaml",
    "torchrun": "torchrun --nproc-per-node 2 {port} launch/pretrain.sh --config configs/pretrain/demo.yaml",
}


def launch(command: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Runs it from the repository root with this interpreter first on the path; only the port is not literal."""
    words = command.format(port=f"--master_port={free_port()}").split()
    return subprocess.run(
        [*words, *overrides], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240, check=False
    )


def small(corpus: Corpus, out: Path) -> list[str]:
    return [
        f"data.shards={corpus.shards}",
        f"data.tokenizer={corpus.tokenizer}",
        f"run.out={out}",
        "run.steps=12",
        "run.log_every=1",
        "data.global_batch=8",
        "model.vision={name: resnet10t, options: {channels: [8, 16, 24, 32]}}",
        "model.text.options.num_hidden_layers=1",
        "model.fusion.depth=1",
        "optim.warmup_steps=2",
    ]


@pytest.mark.parametrize("name", COMMANDS)
def test_it_trains(corpus, tmp_path, name):
    out = tmp_path / "run"
    ended = launch(COMMANDS[name], *small(corpus, out))
    assert ended.returncode == 0, ended.stderr + ended.stdout
    assert ended.stdout.count("checkpoint: ") == 1  # rank 0 alone speaks
    lines = logged(out)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert sum(line["loss"] for line in lines[-4:]) < sum(line["loss"] for line in lines[:4])
    checkpoint = load_checkpoint(out)
    assert checkpoint.step == 12
    assert checkpoint.state["world"] == (2 if name in ("two", "torchrun") else 1)


def test_the_same_command_again_goes_on(corpus, tmp_path):
    out = tmp_path / "run"
    ends = [launch(COMMANDS["bash"], *small(corpus, out), f"run.steps={steps}") for steps in (2, 3)]
    assert [end.returncode for end in ends] == [0, 0], ends
    assert [line["step"] for line in logged(out)] == [1, 2, 3]
    assert weights(out, 3).exists()


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("optim.lrr=1", "error: `optim.lrr` is not a known key; did you mean `optim.lr`?"),
        ("data.global_batch=7", "error: `global_batch` (=7) must be divisible by `world_size` (=2)"),
    ],
)
def test_bad_input_under_the_launcher(corpus, tmp_path, override, sentence):
    ended = launch(COMMANDS["two"], *small(corpus, tmp_path / "run"), override)
    assert ended.returncode != 0
    assert sentence in (ended.stdout + ended.stderr).splitlines()
    assert "Traceback" not in ended.stdout + ended.stderr
    assert files(tmp_path) == []


BAD = {
    "optim.lrr=1": "`optim.lrr` is not a known key",
    "data.shards=absent": "absent",
    "data.tokenizer=absent.json": "`data.tokenizer` (=absent.json) does not exist",
    "optim.freeze=[nothing]": "`optim.freeze` (=nothing) matches no parameter",
}


@pytest.mark.parametrize("override", BAD)
def test_bad_input_on_the_command_line(corpus, tmp_path, override):
    ended = run_module("pretrain.cli", "--config", corpus.config, f"run.out={tmp_path / 'run'}", override)
    assert refusal(ended.status[0], ended.stderr[0]).count(BAD[override]) == 1
    assert files(tmp_path) == []


def test_bad_flags_on_the_command_line(corpus, tmp_path):
    both = run_module("pretrain.cli", "--config", corpus.config, "--resume", "--overwrite")
    assert "exclude each other" in refusal(both.status[0], both.stderr[0])
    absent = run_module("pretrain.cli", "--config", tmp_path / "absent.yaml")
    assert "absent.yaml) is not a file" in refusal(absent.status[0], absent.stderr[0])


def test_a_run_that_exists_and_a_batch_that_does_not_divide(corpus, tmp_path):
    arguments = ("--config", corpus.config, f"run.out={tmp_path / 'run'}", "run.steps=1")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(corpus.config.read_text())
    before = files(tmp_path)
    again = run_module("pretrain.cli", *arguments)
    assert "already holds a run" in refusal(again.status[0], again.stderr[0])
    # The first rank alone: it refuses before it would wait for the other.
    odd = run_module("pretrain.cli", *arguments, "data.global_batch=7", world=2, ranks=1)
    assert "`global_batch` (=7) must be divisible by `world_size` (=2)" in refusal(odd.status[0], odd.stderr[0])
    assert files(tmp_path) == before


def refusal(status: int, stderr: str) -> str:
    """The one error line of a command that refused its input."""
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert (status, len(lines)) == (2, 1), stderr
    assert "Traceback" not in stderr
    return lines[0]
