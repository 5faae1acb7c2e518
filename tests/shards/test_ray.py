"""`--executor ray` on a real Ray instance of this machine."""

import subprocess
import sys
from pathlib import Path

import pytest

from shards.filters import Filters
from shards.sources.scenes import ScenesSource
from shards.write import build_shards
from tests.shards.folders import contents

SECONDS = 300


def test_ray_writes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own: Ray leaves threads behind."""
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    command = "build scenes --samples 60 --samples-per-shard 8 --filter max_characters=50 --executor ray --workers 2"
    words = [sys.executable, "-m", "shards.cli", *command.split(), "--out", str(tmp_path / "ray")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    settings = {"samples": 60, "seed": 0, "split": "train", "size": 64}
    filters = Filters(max_characters=50)
    source = ScenesSource(60, 0, "train")
    build_shards(source, tmp_path / "here", samples_per_shard=8, settings=settings, filters=filters)
    assert contents(tmp_path / "ray") == contents(tmp_path / "here")


FAILING = """
import sys
from pathlib import Path
from shards import console
from shards.errors import UserError
from shards.executors import Executor
from shards.sources.scenes import ScenesSource
from shards.write import build_shards

class Failing(ScenesSource):
    def __getitem__(self, index):
        raise UserError(f"sample {index // 100} is not wanted")

try:
    build_shards(Failing(20, 0, "train"), Path(sys.argv[1]), executor=Executor("ray", 2))
except UserError as error:
    print(error)
"""


def test_an_error_on_ray_arrives_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    words = [sys.executable, "-c", FAILING, str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS)
    assert done.stdout == "sample 0 is not wanted\n", done.stderr
