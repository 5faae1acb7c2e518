"""`--executor ray` on a real Ray instance of this machine, in a process of its own: Ray leaves threads behind."""

import subprocess
import sys
from pathlib import Path

import pytest

from shards.filters import Filters
from shards.sources.scenes import ScenesSource
from shards.write import build_shards
from tests.shards.folders import contents

SECONDS = 300

PROGRAM = """
import sys
from pathlib import Path
from shards.errors import UserError
from shards.executors import Executor
from shards.filters import Filters
from shards.sources.scenes import ScenesSource
from shards.write import build_shards

class Failing(ScenesSource):
    def __getitem__(self, index):
        raise UserError(f"sample {index // 100} is not wanted")

folder, ray = Path(sys.argv[1]), Executor("ray", 2)
source, filters = ScenesSource(60, 0, "train"), Filters(max_characters=50)
build_shards(source, folder / "ray", samples_per_shard=8, filters=filters, executor=ray)
try:
    build_shards(Failing(20, 0, "train"), folder / "failing", executor=ray)
except UserError as error:
    print(error)
"""


def test_ray_writes_the_same_bytes_and_hands_errors_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    words = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, done.stdout) == (0, "sample 0 is not wanted\n"), done.stderr
    source, filters = ScenesSource(60, 0, "train"), Filters(max_characters=50)
    build_shards(source, tmp_path / "here", samples_per_shard=8, filters=filters)
    assert contents(tmp_path / "ray") == contents(tmp_path / "here")
