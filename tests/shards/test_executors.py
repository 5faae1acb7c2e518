"""Jobs run anywhere give the same bytes; a worker's death and a job's error end the build in one sentence."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shards.errors import Stopped, UserError
from shards.executors import Executor
from shards.filters import Filters
from shards.sample import Sample
from shards.sources.scenes import ScenesSource
from shards.write import build_shards
from tests.shards.folders import contents

FILTERS = Filters(max_characters=50, perceptual_distance=31)


@pytest.mark.parametrize("filters", [None, FILTERS], ids=["all", "filtered"])
def test_workers_write_the_same_bytes(filters: Filters | None, tmp_path: Path) -> None:
    for workers in (1, 3):
        source = ScenesSource(95, 0, "train", 48)
        build_shards(
            source, tmp_path / str(workers), samples_per_shard=10, filters=filters, executor=Executor("local", workers)
        )
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


def _square(base: int, number: int) -> int:
    return base + number**2


@pytest.mark.parametrize("workers", [1, 3])
def test_every_job_runs_once(workers: int) -> None:
    jobs = ((number,) for number in range(50))
    assert sorted(Executor("local", workers).run(_square, (1000,), jobs)) == [1000 + n**2 for n in range(50)]


class Failing(ScenesSource):
    def __getitem__(self, index: int) -> Sample:
        if index == 25:
            raise UserError("sample 25 is not wanted")
        return super().__getitem__(index)


class Dying(ScenesSource):
    def __getitem__(self, index: int) -> Sample:
        if index == 25:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_an_error_in_a_worker_arrives_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^sample 25 is not wanted$"):
        build_shards(Failing(60, 0, "train"), tmp_path, samples_per_shard=10, executor=Executor("local", 2))
    assert not (tmp_path / "manifest.json").exists()


def test_a_killed_worker_stops_the_build_which_then_goes_on(tmp_path: Path) -> None:
    with pytest.raises(Stopped, match=r"a worker process died .* go on with --resume"):
        build_shards(Dying(60, 0, "train"), tmp_path / "out", samples_per_shard=10, executor=Executor("local", 2))
    source = ScenesSource(60, 0, "train")
    build_shards(source, tmp_path / "out", samples_per_shard=10, existing="resume", executor=Executor("local", 2))
    build_shards(source, tmp_path / "whole", samples_per_shard=10)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


STUCK_WORKERS = """
import os, sys, time
from pathlib import Path
from shards.executors import Executor
from shards.sources.scenes import ScenesSource
from shards.write import build_shards

class Stuck(ScenesSource):
    def __getitem__(self, index):
        if index in (25, 35):
            os.write(1, b"stuck\\n")  # in one piece, whatever Python's buffering is
            time.sleep(600)
        return super().__getitem__(index)

build_shards(Stuck(60, 0, "train"), Path(sys.argv[1]), samples_per_shard=10, executor=Executor("local", 2))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="workers die with their parent on Linux")
def test_workers_die_with_a_killed_parent_and_the_folder_is_free(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", STUCK_WORKERS, str(out)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert [process.stdout.readline() for _ in range(2)] == [b"stuck\n"] * 2
        finally:
            process.kill()
        assert process.stdout.read() == b""  # Ends only when every worker that inherited the pipe is gone.
    build_shards(ScenesSource(60, 0, "train"), out, samples_per_shard=10, existing="resume")
    build_shards(ScenesSource(60, 0, "train"), tmp_path / "whole", samples_per_shard=10)
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("slurm", 1), r"`executor` \(=slurm\) must be local or ray"),
        (("local", 0), r"`workers` \(=0\) must be at least 1"),
    ],
)
def test_refusals(arguments: tuple[Any, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Executor(*arguments)
