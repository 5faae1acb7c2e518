"""`pretrain status` on runs that really go, end, stop, fail and are killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pretrain import status as module
from pretrain.folder import read_lines
from pretrain.process import announced, read_process
from pretrain.status import lines, read_status
from pretrain.stop import Interrupted
from pretrain.train import fit
from shards.errors import UserError
from tests.pretrain.runs import files, logged
from tests.ranks import environment

LONGEST = 120.0


@pytest.fixture
def finished(configure, tmp_path):
    fit(configure("run.steps=3", "run.log_every=2"))
    return tmp_path / "run"


def command(run: Path, *options: str) -> subprocess.CompletedProcess:
    arguments = [sys.executable, "-m", "pretrain.cli", "status", str(run), *options]
    return subprocess.run(arguments, env=environment(), capture_output=True, text=True)


def test_a_finished_run(finished):
    found, last = read_status(finished), logged(finished, timing=True)[-1]
    assert (found.state, found.step, found.steps, found.samples) == ("finished", 3, 3, 24)
    assert found.losses == {name: last[name] for name in ("loss", "loss/itc", "loss/itm", "loss/mlm")}
    assert (found.lr, found.samples_per_second, found.eta) == (last["lr"], last["samples_per_second"], None)
    assert found.checkpoint.path == str(finished / "checkpoints/step-00000003")
    assert found.checkpoint.step == 3
    assert 0 <= found.log_age < LONGEST
    assert 0 <= found.checkpoint.age < LONGEST
    assert (found.quarantined, found.damaged) == (0, 0)
    assert lines(found)[1] == "step 3 of 3, 24 samples seen"


@pytest.fixture
def going(corpus, tmp_path):
    """A run of many steps in a process of its own, past its second save."""
    run = tmp_path / "going"
    settings = (f"run.out={run}", "run.steps=1000000", "run.save_every=2")
    arguments = [sys.executable, "-m", "pretrain.cli", "--config", str(corpus.config), *settings]
    with subprocess.Popen(arguments, env=environment(), stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + LONGEST
        while len(read_lines(run / "log.jsonl")) < 4:
            assert process.poll() is None
            assert time.monotonic() < deadline, "the fourth step was not reached"
            time.sleep(0.01)
        yield run, process
        process.kill()


def test_a_run_that_goes_and_is_killed(going):
    run, process = going
    first = read_status(run)
    assert (first.state, first.because.split(" on ")[0]) == ("going", f"process {process.pid}")
    assert first.step >= 4
    assert first.eta > 0
    assert first.checkpoint.step >= 2
    deadline = time.monotonic() + LONGEST
    while read_status(run).step < first.step + 2:
        assert process.poll() is None
        assert time.monotonic() < deadline, "the run stood still while it was looked at"
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, but its number is still taken
    dead = read_status(run)
    assert (dead.state, dead.eta) == ("dead", None)
    assert f"process {process.pid}" in dead.because
    assert "is gone" in dead.because


def test_the_command_prints_json_and_lines_and_writes_nothing(finished):
    before = {name: (finished / name).stat().st_mtime_ns for name in files(finished)}
    shown, told = command(finished, "--json"), command(finished)
    assert (shown.returncode, told.returncode) == (0, 0), shown.stderr + told.stderr
    assert json.loads(shown.stdout)["checkpoint"]["step"] == 3
    assert told.stdout.startswith(f"{finished}: finished (process ")
    assert {name: (finished / name).stat().st_mtime_ns for name in files(finished)} == before


@pytest.mark.parametrize("place", ["absent", "empty", "run/checkpoints/step-00000003", "file"])
def test_what_is_no_run_folder_is_refused_in_one_sentence(finished, tmp_path, place):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=r"^`run` \(=.*\) must be a run folder, with the config.yaml of a run and ch"):
        read_status(tmp_path / place)
    refused = command(tmp_path / "empty")
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)


def test_a_line_that_is_not_written_out_is_not_read(finished):
    with (finished / "log.jsonl").open("a") as log:
        log.write('{"step": 4, "ti')
    assert read_status(finished).step == 3


def test_a_run_whose_last_line_a_kill_cut_off_goes_on(configure, finished):
    whole = logged(finished)
    with (finished / "log.jsonl").open("a") as log:
        log.write('{"step": 4, "ti')
    fit(configure("run.steps=4", "run.log_every=2", "run.resume=auto"))
    assert logged(finished)[:2] == whole
    assert [line["step"] for line in logged(finished)] == [2, 3, 4]


@pytest.mark.parametrize(
    ("error", "state", "because"),
    [
        (Interrupted(), "stopped", r"process \d+ on .* said so"),
        (RuntimeError("the disk is on fire\nand so is the rack"), "failed", "the disk is on fire$"),
        (KeyboardInterrupt(), "failed", "KeyboardInterrupt$"),
    ],
)
def test_how_a_run_ended_is_told(finished, error, state, because):
    def run():
        with announced(finished, rank=0):
            assert read_status(finished).state == "going"
            raise error

    with pytest.raises(type(error)):
        run()
    found = read_status(finished)
    assert found.state == state
    assert re.match(because, found.because)


def test_a_process_number_that_is_used_again_is_not_the_run(finished):
    """A number belongs to this test now, but its birth is another's."""
    with announced(finished, rank=0):
        process = read_process(finished)
    assert replace(process, ending=None).alive
    assert replace(process, birth=process.birth - 1).alive is False


def test_a_run_on_another_machine_is_known_by_its_signs_of_life(finished, monkeypatch):
    file = finished / "process.json"
    elsewhere = {"host": "far", "machine": "another boot", "ending": None}
    file.write_text(json.dumps(json.loads(file.read_text()) | elsewhere))
    found = read_status(finished)
    assert found.state == "going"
    assert "on far cannot be seen from here" in found.because
    later = time.time() + module.SHORTEST_SILENCE + LONGEST
    monkeypatch.setattr(time, "time", lambda: later)
    found = read_status(finished)
    assert found.state == "silent"
    assert "the last sign of life is 0:0" in found.because


def test_what_was_left_out_is_counted_once(finished):
    (finished / "quarantine.jsonl").write_text('{"batch": 3, "reason": "nan"}\n{"batch": 5, "rea')
    (finished / "damage").mkdir()
    for rank, indices in enumerate(((1, 2, 2), (2, 7))):
        entries = "".join(json.dumps({"position": 9, "source": "a", "index": i, "reason": ""}) + "\n" for i in indices)
        (finished / f"damage/rank-{rank:05d}.jsonl").write_text(entries)
    found = read_status(finished)
    assert (found.quarantined, found.damaged) == (1, 3)


DAMAGED = {
    ("process.json", "{"): "process.json does not say who runs it; delete it to go on",
    ("process.json", '{"pid": 7}'): "process.json does not say who runs it; delete it to go on",
    ("log.jsonl", '{"step": 1}\n{"st\n{"step": 3}\n'): "line 2 of log.jsonl is not JSON; delete it to go on",
    ("log.jsonl", '{"time": 1}\n'): "line 1 of log.jsonl lacks `step`; delete it to go on",
    ("log.jsonl", "7\n"): "line 1 of log.jsonl is no object; delete it to go on",
    ("checkpoints/latest", "\0\0\0"): "checkpoints/latest must hold the name of a checkpoint",
    ("config.yaml", "{"): None,
    ("config.yaml", "run: 7"): None,
}


@pytest.mark.parametrize(("name", "content"), DAMAGED)
def test_a_damaged_file_is_a_sentence_for_those_who_look_and_those_who_go_on(configure, finished, name, content):
    (finished / name).write_text(content)
    before = files(finished)
    expected = f"`run` (={finished}) is damaged: {DAMAGED[name, content]}"
    with pytest.raises(UserError) as caught:
        read_status(finished)
    assert str(caught.value) == expected or (name == "config.yaml" and "must be a run folder" in str(caught.value))
    if name == "process.json":  # of the process before: who goes on writes a new one
        return
    with pytest.raises(UserError) as caught:
        fit(configure("run.steps=4", "run.log_every=2", "run.resume=auto"))
    assert str(caught.value) == expected or name == "config.yaml"
    assert "\n" not in str(caught.value)
    assert files(finished) == before
