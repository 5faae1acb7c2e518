"""`deepspeed --hostfile` over ssh on two hosts, one of which is cut off: the job ends, the same command goes on.

The hosts are network namespaces of this machine, so this needs root, iproute2, an ssh server and pdsh.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain.checkpoint import load_checkpoint
from tests.end_to_end.hosts import ADDRESSES, CABLE, Hosts, missing, two_hosts
from tests.faults.test_kills import a_step, poll
from tests.pretrain.conftest import Corpus
from tests.pretrain.runs import logged, weights
from tests.ranks import ROOT, environment, run_module

pytestmark = [pytest.mark.slow, pytest.mark.long]
STEPS = 60
SILENCE = 15
LONGEST = 150.0
"""Seconds until a job that lost a host must have ended: the silence, ssh's own patience, and a busy machine's."""


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    if reason := missing():
        pytest.skip(reason)
    root = tmp_path / "hosts"
    root.mkdir(mode=0o700)
    with two_hosts(root) as found:
        yield found


def settings(corpus: Corpus, out: Path) -> list[str]:
    chosen = (f"run.out={out}", f"run.steps={STEPS}", "run.save_every=5", f"run.silence_timeout={SILENCE}")
    return ["--config", str(corpus.config), *chosen, "engine.zero=1", "model.fusion.dropout=0.2"]


def start(hosts: Hosts, root: Path, *arguments: str) -> subprocess.Popen[str]:
    """The launcher on the first host; what the ranks need to know reaches them by DeepSpeed's own file."""
    (root / "hostfile").write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))
    known = environment(GLOO_SOCKET_IFNAME=CABLE)
    told = ("DS_ACCELERATOR", "OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "PYTHONPATH", "PATH")
    (root / "variables").write_text("".join(f"{name}={known[name]}\n" for name in told))
    path = os.pathsep.join([str(hosts.path), known["PATH"]])
    words = ["deepspeed", "--hostfile", root / "hostfile", "--master_addr", ADDRESSES[0], "launch/pretrain.sh"]
    return subprocess.Popen(
        hosts.inside(0, *words, *arguments),
        cwd=ROOT,
        env=known | {"PATH": path, "DS_ENV_FILE": str(root / "variables")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_host_that_is_cut_off_ends_the_job_and_the_same_command_goes_on(hosts, corpus, tmp_path):
    undisturbed = tmp_path / "undisturbed"
    ended = run_module("pretrain.cli", *settings(corpus, undisturbed), world=2)
    assert ended.status == [0, 0], ended.stderr
    run = tmp_path / "run"
    job = start(hosts, tmp_path, *settings(corpus, run))
    try:
        poll(lambda: a_step(run, 8) or job.poll() is not None)
        hosts.cable("down")
        said, _ = job.communicate(timeout=LONGEST)
    finally:
        job.kill()
    assert job.returncode != 0, said
    assert f"rank 0 has made no step for {SILENCE} s after step" in said
    assert len(logged(run)) < STEPS
    alone(hosts)
    hosts.cable("up")
    job = start(hosts, tmp_path, *settings(corpus, run))
    try:
        said, _ = job.communicate(timeout=LONGEST)
    finally:
        job.kill()
    assert job.returncode == 0, said
    assert load_checkpoint(run).state["world"] == 2
    assert logged(run) == logged(undisturbed)
    assert weights(run, STEPS).read_bytes() == weights(undisturbed, STEPS).read_bytes()


def alone(hosts: Hosts) -> None:
    """Nobody was told to end the rank that was cut off: it has to find out itself."""
    deadline = time.monotonic() + LONGEST
    while any(b"pretrain.sh" in command(pid) for number in range(2) for pid in hosts.processes(number)):
        assert time.monotonic() < deadline, "a rank outlived its job"
        time.sleep(0.1)


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
