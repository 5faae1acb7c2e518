"""Real signals: every rank saves and leaves with the status that means "again", and the next life changes nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretrain.stop import RESTART
from tests.pretrain.conftest import Corpus
from tests.pretrain.runs import files, logged, weights
from tests.ranks import environment, free_port, run_module

pytestmark = [pytest.mark.slow, pytest.mark.long]
STEPS = 80
SETTINGS = (f"run.steps={STEPS}", "model.fusion.dropout=0.2")  # no save before the end, but for the signal


def command(corpus: Corpus, out: Path, *more: str) -> list[str]:
    return ["--config", str(corpus.config), f"run.out={out}", *SETTINGS, "--resume", *more]


def start(arguments: list[str], world: int) -> list[subprocess.Popen[str]]:
    """The ranks, each in a process group of its own, as torchrun makes them."""
    group = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "pretrain.cli", *arguments],
            env=environment(**(group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {})),
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for rank in range(world)
    ]


def wait_for_step(run: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (run / "log.jsonl").is_file() and (run / "log.jsonl").read_text().count("\n") >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached: {files(run)}")


@pytest.fixture(scope="module", params=[1, 2])
def undisturbed(request: pytest.FixtureRequest, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory):
    """World size and the folder of a run that nobody disturbs."""
    out = tmp_path_factory.mktemp("undisturbed")
    ended = run_module("pretrain.cli", *command(corpus, out), world=request.param)
    assert ended.status == [0] * request.param, ended.stderr
    return request.param, out


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 2), (signal.SIGUSR1, 0)])
def test_a_signal_to_the_last_rank_saves_all_and_the_run_goes_on_bit_for_bit(
    undisturbed, corpus, tmp_path, number, workers
):
    """With data workers, the signal reaches them as well: torchrun and Slurm signal whole process groups."""
    (world, whole), run = undisturbed, tmp_path / "run"
    ranks = start(command(corpus, run, f"data.workers={workers}"), world)
    try:
        wait_for_step(run, 3)
        os.killpg(ranks[-1].pid, number)
        spoken = [rank.communicate(timeout=120)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [RESTART] * world, spoken
    stopped = len(logged(run))
    assert 3 <= stopped < STEPS
    assert f"stopped by a signal after step {stopped} of {STEPS}; the run is saved and can go on" in spoken[0]
    assert not any("Traceback" in text for text in spoken)
    assert weights(run, stopped).exists()
    ended = run_module("pretrain.cli", *command(corpus, run, f"data.workers={workers}"), world=world)
    assert ended.status == [0] * world, ended.stderr
    assert logged(run) == logged(whole)
    assert weights(run, STEPS).read_bytes() == weights(whole, STEPS).read_bytes()
