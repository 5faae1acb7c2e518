"""A run that goes on, starts over or is asked to stop; bit for bit, and never over what is not its own."""

import shutil
import signal
import subprocess
import sys
import time

import pytest

from pretrain.checkpoint import load_checkpoint
from pretrain.stop import Interrupted
from pretrain.train import fit
from shards.errors import UserError
from shards.sample import Sample
from tests.pretrain.colours import Colours
from tests.pretrain.runs import files, interrupted, logged, weights
from tests.ranks import environment

RESUMED = (
    "run.steps=6",
    "run.save_every=3",
    "run.keep_last=9",
    "optim.lr=3e-3",
    "model.fusion.dropout=0.2",
    "model.text.options.hidden_dropout_prob=0.1",
    "data.augment={crop_scale: 0.6, color: 0.2, flip: true, erase: 0.3}",
)


@pytest.mark.parametrize(("workers", "later"), [(0, 0), (2, 1)])
def test_an_interrupted_run_goes_on_bit_for_bit(configure, tmp_path, workers, later):
    fit(configure(*RESUMED, f"data.workers={workers}"))
    copy = interrupted(tmp_path / "run", 3, tmp_path / "copy")
    fit(configure(*RESUMED, f"data.workers={later}", f"run.out={copy}", "run.resume=auto"))
    assert logged(copy) == logged(tmp_path / "run")
    assert weights(copy, 6).read_bytes() == weights(tmp_path / "run", 6).read_bytes()


def test_dropout_and_seed_change_the_run(configure, tmp_path):
    """Else the test above would prove little."""
    for name, setting in {"a": "run.seed=0", "b": "run.seed=1", "c": "model.fusion.dropout=0.3"}.items():
        fit(configure(*RESUMED, setting, f"run.out={tmp_path / name}"))
    a, b, c = (logged(tmp_path / name)[0]["loss"] for name in "abc")
    assert len({a, b, c}) == 3


@pytest.mark.slow
def test_a_killed_run_ends_as_if_it_had_not_been(corpus, tmp_path):
    """SIGKILL, wherever it strikes after the first checkpoint."""

    def command(out, *more):
        settings = ("run.steps=40", "run.save_every=2", "model.fusion.dropout=0.2")
        return [sys.executable, "-m", "pretrain.cli", "--config", corpus.config, f"run.out={out}", *settings, *more]

    subprocess.run(command(tmp_path / "whole"), check=True, env=environment(), capture_output=True)
    with subprocess.Popen(command(tmp_path / "killed"), env=environment(), stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "killed" / "checkpoints" / "latest").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not weights(tmp_path / "killed", 40).exists()
    subprocess.run(command(tmp_path / "killed", "--resume"), check=True, env=environment(), capture_output=True)
    assert logged(tmp_path / "killed") == logged(tmp_path / "whole")
    assert weights(tmp_path / "killed", 40).read_bytes() == weights(tmp_path / "whole", 40).read_bytes()
    assert [f for f in files(tmp_path / "killed" / "checkpoints") if f.startswith(".partial")] == []


class Asking(Colours):
    """Signals this process when the third step reads its batch of eight."""

    def __getitem__(self, index: int) -> Sample:
        self.read = getattr(self, "read", 0) + 1
        if self.read == 3 * 8 + 2:  # check() reads one more, and the rehearsal a batch
            signal.raise_signal(signal.SIGTERM)
        return super().__getitem__(index)


def test_a_run_that_is_asked_to_stop_saves_and_can_go_on(configure, tmp_path, capsys):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        fit(configure(), Asking())
    assert caught.value.code == 75
    assert "stopped by a signal after step 3 of 4; the run is saved and can go on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
    assert load_checkpoint(tmp_path / "run").step == 3
    assert load_checkpoint(fit(configure("run.resume=auto"), Colours())).step == 4


def test_a_finished_run_is_left_as_it_is(configure, tmp_path):
    first = fit(configure())
    written = weights(tmp_path / "run", 4).stat().st_mtime_ns
    assert fit(configure("run.resume=auto")) == first
    assert weights(tmp_path / "run", 4).stat().st_mtime_ns == written
    assert [line["step"] for line in logged(tmp_path / "run")] == [1, 2, 3, 4]


def test_a_run_may_be_made_longer(configure, tmp_path):
    fit(configure("run.steps=2"))
    assert load_checkpoint(fit(configure("run.steps=3", "run.resume=auto"))).step == 3
    assert [line["step"] for line in logged(tmp_path / "run")] == [1, 2, 3]


def test_overwriting_starts_anew(configure, tmp_path):
    fit(configure())
    fit(configure("run.steps=1", "run.resume=overwrite"))
    assert [line["step"] for line in logged(tmp_path / "run")] == [1]
    assert not weights(tmp_path / "run", 4).exists()


def test_another_run_is_not_written_over(configure, tmp_path):
    fit(configure("run.steps=1"))
    before = files(tmp_path / "run")
    with pytest.raises(UserError, match=r"`run\.out` .* already holds a run; continue it with --resume or delete it"):
        fit(configure("run.steps=1"))
    with pytest.raises(UserError, match=r"^`optim\.lr` \(=0\.5\) must be 0\.0001, as in the run that"):
        fit(configure("optim.lr=0.5", "run.resume=auto"))
    with pytest.raises(UserError, match=r"^`run\.seed` \(=5\) must be 0, as in the run that"):
        fit(configure("run.seed=5", "run.resume=auto"))
    assert files(tmp_path / "run") == before


@pytest.mark.parametrize("resume", ["never", "auto", "overwrite"])
def test_foreign_files_are_safe(configure, tmp_path, resume):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="it holds files that are not a run's"):
        fit(configure(f"run.resume={resume}"))
    assert files(tmp_path / "run") == ["thesis.tex"]


def test_a_run_moves_with_its_folder(configure, tmp_path):
    fit(configure("run.steps=2"))
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    assert load_checkpoint(tmp_path / "elsewhere").step == 2
    moved = fit(configure("run.steps=3", f"run.out={tmp_path / 'elsewhere'}", "run.resume=auto"))
    assert load_checkpoint(moved).step == 3
