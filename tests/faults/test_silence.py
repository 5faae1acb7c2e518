"""A rank that falls silent ends the job in bounded time, and those that can still speak say where they stand."""

import os
import signal

import pytest

from tests.faults.test_kills import LONGEST, a_step, poll
from tests.faults.test_signals import start
from tests.ranks import run_module

pytestmark = [pytest.mark.slow, pytest.mark.long]


def test_a_stopped_rank_ends_the_job_with_stacks(corpus, tmp_path):
    run = tmp_path / "run"
    settings = (f"run.out={run}", "run.steps=100000", "run.silence_timeout=30")
    ranks = start(["--config", str(corpus.config), *settings], world=2)
    try:
        poll(lambda: a_step(run, 2))
        os.kill(ranks[1].pid, signal.SIGSTOP)
        spoken = [ranks[0].communicate(timeout=LONGEST)[1]]
        os.kill(ranks[1].pid, signal.SIGCONT)
        spoken.append(ranks[1].communicate(timeout=LONGEST)[1])
    finally:
        for rank in ranks:
            rank.kill()
    assert ranks[0].returncode == 1
    assert "error: rank 0 has made no step for 30 s after step " in spoken[0]
    assert "most recent call first" in spoken[0]
    assert "in _steps" in spoken[0]  # the main thread's stack, in the loop
    assert ranks[1].returncode != 0, spoken[1]


def test_ranks_that_would_train_different_things_are_told(corpus, tmp_path):
    settings = ("--config", str(corpus.config), f"run.out={tmp_path / 'run'}")
    ended = run_module("tests.faults.differing", "1", "optim.lr=0.5", *settings, world=2)
    assert ended.status == [2, 2], ended.stderr
    sentence = "error: `optim.lr` (=0.5) of rank 1 must be that of rank 0 (=0.0001)"
    assert [text.splitlines()[-1] for text in ended.stderr] == [sentence] * 2
    assert not (tmp_path / "run").exists()
