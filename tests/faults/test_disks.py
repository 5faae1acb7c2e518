"""A full, read-only or dead disk of one rank: nobody hangs, all learn why, the checkpoint before is whole."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain.checkpoint import load_checkpoint
from tests.pretrain.runs import files, logged
from tests.ranks import Ended, run_module

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a disk for one rank needs root"),
]
SETTINGS = ("run.steps=8", "run.save_every=2", "engine.zero=2")
WHY = {"full": "rank 1: [Errno 28] No space left on device", "readonly": "rank 1: [Errno 30] Read-only file system"}


@pytest.fixture
def frozen_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system that can be frozen: whoever writes then waits in the kernel, as for a dead remote mount."""
    image, disk = tmp_path / "image", tmp_path / "disk"
    disk.mkdir()
    image.write_bytes(bytes(8 << 20))
    for command in (("mkfs.ext4", "-q", image), ("mount", "-o", "loop", image, disk)):
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.skip(f"a disk that can be frozen needs loop devices: {made.stderr.strip()}")
    yield disk
    subprocess.run(["fsfreeze", "--unfreeze", disk], capture_output=True, check=False)  # thawed, if all went well
    subprocess.run(["umount", "--lazy", disk], check=True)


def trained(corpus, run: Path, how: str, disk: Path, *more: str) -> Ended:
    arguments = ("--config", corpus.config, f"run.out={run}", *SETTINGS, *more)
    return run_module("tests.faults.own_disk", "1", how, disk, *arguments, world=2)


def test_a_full_disk_of_one_rank_costs_one_checkpoint(corpus, tmp_path):
    run = tmp_path / "run"
    ended = trained(corpus, run, "full", tmp_path, "run.on_save_failure=continue", "run.keep_last=9")
    assert ended.status == [0, 0], ended.stderr
    sentence = f"step 4: the checkpoint was not written, older ones are whole: {WHY['full']}"
    assert sentence in ended.stderr[0]
    assert ended.stderr[0].count("was not written") == 1
    kept = [name for name in files(run / "checkpoints") if "/" not in name]
    assert kept == ["latest", "step-00000002", "step-00000006", "step-00000008"]
    assert [line["step"] for line in logged(run)] == list(range(1, 9))


def test_a_read_only_disk_of_one_rank_stops_all(corpus, tmp_path):
    run = tmp_path / "run"
    ended = trained(corpus, run, "readonly", tmp_path)
    assert ended.status == [1, 1], ended.stderr
    sentence = f"error: the checkpoint was not written, older ones are whole: {WHY['readonly']}"
    for text in ended.stderr:
        assert [line[: len(sentence)] for line in text.splitlines() if line.startswith("error: ")] == [sentence]
        assert "Traceback" not in text
    assert load_checkpoint(run).step == 2
    assert [name for name in files(run / "checkpoints") if "/" not in name] == ["latest", "step-00000002"]


def test_a_dead_disk_of_one_rank_holds_up_nobody(corpus, tmp_path, frozen_disk):
    run = tmp_path / "run"
    more = ("run.on_save_failure=continue", "run.silence_timeout=20")
    ended = trained(corpus, run, "frozen", frozen_disk, *more)
    assert ended.status == [0, 0], ended.stderr
    assert (
        "step 4: the checkpoint was not written, older ones are whole: rank 1: not written within 10 s"
        in (ended.stderr[0])
    )
    assert (
        "step 6: the checkpoint was not written, older ones are whole: rank 1: an earlier save still hangs"
        in (ended.stderr[0])
    )
    assert load_checkpoint(run).step == 8
