"""The launch files of supervisors: they parse, agree with themselves, and requeue when they should."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from deepspeed.launcher.runner import fetch_hostfile

from pretrain.config import PretrainConfig
from pretrain.settings import load_config
from tests.pretrain.runs import logged
from tests.ranks import ROOT, environment

STEPS = 60


@pytest.mark.parametrize(
    "file", ["slurm.sbatch", "torchrun.sh", "demo.sh", "emoji.sh"]
)  # pretrain.sh is Python as well
def test_the_shell_can_read_it(file):
    assert subprocess.run(["bash", "-n", ROOT / "launch" / file]).returncode == 0


def test_the_kubernetes_job_agrees_with_itself():
    service, job = yaml.safe_load_all((ROOT / "launch" / "kubernetes.yaml").read_text())
    name, spec, pod = job["metadata"]["name"], job["spec"], job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    options = [word for word in container["args"] if word.startswith("--")]
    flags = dict(word.removeprefix("--").split("=") for word in options)
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert flags["master-addr"] == f"{name}-0.{pod['subdomain']}"
    assert int(flags["nnodes"]) == spec["completions"] == spec["parallelism"]
    assert int(flags["nproc-per-node"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    wait = {variable["name"]: variable.get("value") for variable in container["env"]}["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]
    assert int(wait) < pod["terminationGracePeriodSeconds"]
    assert "launch/pretrain.sh" in container["args"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    settings = [word for word in container["args"] if "=" in word and word not in options]
    assert load_config(PretrainConfig, ROOT / flags["config"], settings).run.out == "/data/runs/demo"


def test_deepspeed_reads_the_hostfile():
    assert dict(fetch_hostfile(str(ROOT / "launch" / "hostfile.example"))) == {"node-1": 8, "node-2": 8}


@pytest.fixture
def slurm(tmp_path: Path) -> Path:
    """A folder of commands that stand for Slurm's on one node; `calls` lists what the script asked of them."""
    commands = {
        "srun": 'echo $$ > {0}/step; shift; exec "$@"',  # without its one option: the rest runs here
        "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "$@" >> {0}/calls; fi',
        "scancel": 'step=$(cat {0}/step); kill "${{1/--signal=/-}}" $step $(pgrep -P $step)',
    }
    for name, line in commands.items():
        (tmp_path / name).write_text("#!/usr/bin/env bash\n" + line.format(tmp_path) + "\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def submit(slurm: Path, *arguments: str, restarts: int = 0) -> subprocess.Popen[bytes]:
    job = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_RESTART_COUNT": str(restarts),
    }
    inherited = environment(**job)
    words = ["bash", "launch/slurm.sbatch", *arguments]
    return subprocess.Popen(words, cwd=ROOT, env=inherited | {"PATH": f"{slurm}{os.pathsep}{inherited['PATH']}"})


def calls(slurm: Path) -> list[str]:
    return (slurm / "calls").read_text().splitlines() if (slurm / "calls").exists() else []


@pytest.mark.parametrize(("restarts", "requeued"), [(0, 1), (4, 1), (5, 0)])
def test_a_failure_is_requeued_a_few_times(slurm, restarts, requeued):
    (slurm / "torchrun").write_text("#!/usr/bin/env bash\nexit 1\n")
    (slurm / "torchrun").chmod(0o755)
    assert submit(slurm, restarts=restarts).wait(timeout=60) == 1
    assert calls(slurm) == [f"requeue {os.getpid()}"] * requeued


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pgrep") is None, reason="pgrep is not installed: it stands for scancel")
def test_a_job_at_its_time_limit_saves_and_goes_on(slurm, corpus, tmp_path):
    """The signal reaches torchrun and its rank, as Slurm's does; the job is requeued whatever came before."""
    run = tmp_path / "run"
    arguments = ("--config", str(corpus.config), f"run.out={run}", f"run.steps={STEPS}")
    job = submit(slurm, *arguments, restarts=99)
    try:
        deadline = time.monotonic() + 120
        while not (run / "log.jsonl").is_file() or len(logged(run)) < 3:
            assert time.monotonic() < deadline, "the third step was not reached"
            time.sleep(0.05)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(timeout=120) == 1
    finally:
        job.kill()
    assert calls(slurm) == [f"requeue {os.getpid()}"]
    stopped = len(logged(run))
    assert stopped < STEPS
    assert (run / "checkpoints" / "latest").read_text() == f"step-{stopped:08d}"
    assert submit(slurm, *arguments, restarts=100).wait(timeout=240) == 0
    assert [line["step"] for line in logged(run)] == list(range(1, STEPS + 1))
    assert calls(slurm) == [f"requeue {os.getpid()}"]
