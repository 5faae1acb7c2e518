"""Weights & Biases and MLflow by their own libraries, offline, and what happens when they fail."""

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain import trackers
from pretrain.trackers import Forgiving, check_trackers
from shards.errors import UserError
from tests.pretrain.runs import logged
from tests.ranks import environment

BLOCK, FULL, LAST = 32768, 1, 4


def trained(corpus, tmp_path: Path, *settings: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A run of two steps in a process of its own, which ends the libraries' threads and services with it."""
    words = [sys.executable, "-m", "pretrain.cli", "--config", str(corpus.config), f"run.out={tmp_path / 'run'}"]
    known = environment(PYTHONWARNINGS="default", WANDB_MODE="offline", HOME=str(tmp_path), **variables)
    return subprocess.run(
        [*words, "run.steps=2", *settings], env=known, cwd=tmp_path, capture_output=True, text=True, timeout=240
    )


@pytest.mark.slow
def test_both_get_the_numbers_of_the_log(corpus, tmp_path, monkeypatch):
    _, mlflow = (pytest.importorskip(name) for name in ("wandb", "mlflow"))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # it would rather have a database
    store = (tmp_path / "mlruns").as_uri()
    ended = trained(corpus, tmp_path, "run.track=[wandb, mlflow]", MLFLOW_TRACKING_URI=store)
    assert ended.returncode == 0, ended.stderr
    assert "gets no more numbers" not in ended.stderr
    lines = logged(tmp_path / "run", timing=True)
    assert [line["step"] for line in lines] == [1, 2]
    [file] = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    assert history(file) == [{k: pytest.approx(v) for k, v in numbers(line).items()} for line in lines]
    client = mlflow.MlflowClient(tracking_uri=store)
    [run] = client.search_runs([client.get_experiment_by_name("duostream").experiment_id])
    assert run.data.params["optim.lr"] == "0.0001"
    for name in numbers(lines[0]):
        found = client.get_metric_history(run.info.run_id, "loss/all" if name == "loss" else name)
        assert [(one.step, one.value) for one in found] == [(line["step"], line[name]) for line in lines]


def numbers(line: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name not in ("step", "time")}


def history(file: Path) -> list[dict[str, float]]:
    """The rows of an offline file, by the library's own messages."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for content in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        if record.HasField("history"):
            items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            rows.append({name: value for name, value in items.items() if not name.startswith("_")})
    return rows


def records(content: bytes) -> Iterator[bytes]:
    """What LevelDB's log format holds behind the library's seven bytes: parts of records in blocks of 32 KiB."""
    place, whole = 7, b""
    while place + 7 <= len(content):
        if (left := BLOCK - place % BLOCK) < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (FULL, LAST):
            yield whole
            whole = b""


@pytest.mark.slow
def test_a_tracker_that_fails_stops_no_training(corpus, tmp_path):
    pytest.importorskip("mlflow")
    (tmp_path / "occupied").write_text("a file where a store should be")
    store = (tmp_path / "occupied" / "store").as_uri()
    ended = trained(corpus, tmp_path, "run.track=[mlflow]", MLFLOW_TRACKING_URI=store)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("mlflow gets no more numbers, training goes on: ") == 1
    assert len(logged(tmp_path / "run")) == 2


class Failing:
    """A tracker whose service goes away."""

    def __init__(self) -> None:
        self.calls = 0

    def log(self, step, values):
        self.calls += 1
        if self.calls == 2:
            raise ConnectionError("the service is gone\nand a page of details")

    def close(self):
        raise AssertionError("a tracker that failed is left alone")


def test_after_its_first_failure_it_is_left_alone(capsys):
    failing = Failing()
    tracker = Forgiving("wandb", lambda: failing)
    for step in range(4):
        tracker.log(step, {"loss": 1.0})
    tracker.close()
    assert failing.calls == 2
    assert capsys.readouterr().err == "wandb gets no more numbers, training goes on: the service is gone\n"


def test_a_library_that_is_not_there_is_refused_before_anything(configure, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"^`run.track` \(=wandb\) needs its library: pip install 'duostream\[wandb\]'$"
    ):
        check_trackers(configure("run.track=[wandb]").run.track)
