"""The interpreter does not go down under a gloo thread that still holds tensors: that aborts the process."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.ranks import run_module

pytestmark = pytest.mark.slow
COMPILER = shutil.which("cc") or shutil.which("gcc")


@pytest.mark.skipif(COMPILER is None, reason="no C compiler: it builds what delays gloo's threads")
def test_a_process_waits_for_threads_that_finish_a_collective(tmp_path, monkeypatch):
    library, source = tmp_path / "late_release.so", Path(__file__).with_name("late_release.c")
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    ended = run_module("tests.faults.leaving")
    assert ended.status == [0], ended.stderr
    assert ended.stdout == ["sleeping\n"]
