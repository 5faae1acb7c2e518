"""`launch/preflight.sh` says whether a run could start, and leaves nothing behind."""

import subprocess
from pathlib import Path

import pytest

from tests.pretrain.runs import files
from tests.ranks import ROOT, environment, free_port

pytestmark = pytest.mark.slow


def preflight(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    words = ["torchrun", "--nproc-per-node=2", f"--master-port={free_port()}", "launch/preflight.sh", *arguments]
    return subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240)


def test_it_measures_and_leaves_nothing(corpus, tmp_path):
    ended = preflight("--config", corpus.config, f"run.out={tmp_path / 'run'}")
    assert ended.returncode == 0, ended.stderr
    same, disk, bandwidth = ended.stdout.splitlines()
    assert same == "configuration, data and versions are the same on all 2 ranks"
    assert disk.startswith("the disk has ")
    assert float(bandwidth.removeprefix("an all-reduce of 64 MB moves ").split(" ")[0]) > 0
    assert files(tmp_path) == []


def test_it_refuses_in_one_sentence(corpus, tmp_path):
    ended = preflight("--config", corpus.config, f"run.out={tmp_path / 'run'}", "run.keep_last=1000000000")
    assert ended.returncode != 0
    assert "GB free for checkpoints, it has " in ended.stderr
    assert "error: `run.out` (=" in ended.stderr
    assert files(tmp_path) == []
