"""SIGKILL at any moment, a save included: the run that goes on is bit for bit the run that nobody disturbed."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.checkpoint import find_checkpoint, load_checkpoint
from pretrain.stop import RESTART
from tests.faults.test_signals import start
from tests.pretrain.conftest import Corpus
from tests.pretrain.runs import logged, weights
from tests.ranks import ROOT, environment, run_module

pytestmark = [pytest.mark.slow, pytest.mark.long]
STEPS = 24
WORLD = 2
LONGEST = 120  # seconds until the ranks that are left must have ended by themselves
INSTANTS = random.Random(0)


def arguments(corpus: Corpus, out: Path) -> list[str]:
    settings = (f"run.out={out}", f"run.steps={STEPS}", "run.save_every=2", "model.fusion.dropout=0.2", "engine.zero=2")
    return ["--config", str(corpus.config), *settings, "run.resume=auto"]


@pytest.fixture(scope="module")
def undisturbed(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    ended = run_module("pretrain.cli", *arguments(corpus, out), world=WORLD)
    assert ended.status == [0] * WORLD, ended.stderr
    return out


def a_step(run: Path, step: int) -> bool:
    """Whether the run has logged `step`, and is somewhere behind it."""
    log = run / "log.jsonl"
    return log.is_file() and log.read_text().count("\n") >= step


def partial(run: Path) -> set[Path]:
    """Checkpoints that are being written, or that a kill left half-way."""
    return set((run / "checkpoints").glob(".partial-*"))


def a_save(run: Path) -> Callable[[], bool]:
    """Whether a checkpoint is being written that was not there before."""
    before = partial(run)
    return lambda: not partial(run) <= before


def poll(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONGEST
    while not reached():
        assert time.monotonic() < deadline, "the moment of the kill was not reached"
        time.sleep(0.0005)


def killed(corpus: Corpus, run: Path, victims: list[int], reached: Callable[[], bool]) -> None:
    """A life that ends with the SIGKILL of some ranks; the others end by themselves."""
    ranks = start(arguments(corpus, run), WORLD)
    try:
        poll(reached)
        time.sleep(INSTANTS.uniform(0, 0.03))
        for victim in victims:
            ranks[victim].kill()
        ended = [rank.communicate(timeout=LONGEST) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [ranks[victim].returncode for victim in victims] == [-signal.SIGKILL] * len(victims), ended
    for number in set(range(WORLD)) - set(victims):
        assert ranks[number].returncode == RESTART, ended
        assert f"error: rank {number} lost its peers after step " in ended[number][1]
        assert "Traceback" not in ended[number][1]
        assert "Traceback" in (run / "errors" / f"rank-{number:05d}.txt").read_text()


def test_killed_at_a_step_and_while_saving(undisturbed, corpus, tmp_path):
    run = tmp_path / "run"
    killed(corpus, run, [1], lambda: a_step(run, 5))
    assert find_checkpoint(run)
    killed(corpus, run, [0], a_save(run))
    killed(corpus, run, [0, 1], a_save(run))
    assert load_checkpoint(run).step < STEPS  # whole, whatever the kills left beside it
    ended = run_module("pretrain.cli", *arguments(corpus, run), world=WORLD)
    assert ended.status == [0] * WORLD, ended.stderr
    assert logged(run) == logged(undisturbed)
    assert weights(run, STEPS).read_bytes() == weights(undisturbed, STEPS).read_bytes()


def process_of(rank: int, parent: int) -> int:
    """The process that a launcher started as `rank`."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            status, variables = (place / "status").read_text(), (place / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"PPid:\t{parent}\n" in status and f"RANK={rank}".encode() in variables:
            return int(place.name)
    raise AssertionError(f"rank {rank} is not running")


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc: it tells which process is which rank")
def test_torchrun_starts_a_killed_rank_again(undisturbed, corpus, tmp_path):
    run = tmp_path / "run"
    command = ["bash", ROOT / "launch" / "torchrun.sh", *arguments(corpus, run)]
    variables = environment(PET_NPROC_PER_NODE=str(WORLD), PET_MAX_RESTARTS="2")
    with (tmp_path / "said").open("w") as said:
        job = subprocess.Popen(command, env=variables, stdout=said, stderr=said, cwd=tmp_path)
        try:
            poll(lambda: a_step(run, 5))
            os.kill(process_of(WORLD - 1, job.pid), signal.SIGKILL)
            status = job.wait(timeout=2 * LONGEST)
        finally:
            job.terminate()
    assert status == 0, (tmp_path / "said").read_text()
    assert "exitcode: -9" in (tmp_path / "said").read_text()
    assert logged(run) == logged(undisturbed)
    assert weights(run, STEPS).read_bytes() == weights(undisturbed, STEPS).read_bytes()
