"""A batch that makes the loss NaN, or far too large, on one rank: the run goes back, past it, and says so."""

import json
from pathlib import Path

import pytest

from tests.pretrain.conftest import Corpus
from tests.pretrain.runs import logged, weights
from tests.ranks import Ended, run_module

pytestmark = [pytest.mark.slow, pytest.mark.long]
STEPS = 24
SICK = 19  # after enough losses to measure a spike against, and between two checkpoints
SETTINGS = (f"run.steps={STEPS}", "run.save_every=8", "run.keep_last=9", "model.fusion.dropout=0.2")


def trained(corpus: Corpus, out: Path, how: str, world: int, *more: str) -> Ended:
    arguments = (corpus.config, out, how, str(SICK), *SETTINGS, *more)
    return run_module("tests.faults.sick_batch", *arguments, world=world)


def ledger(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "quarantine.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("world", "how"), [(2, "nan"), (1, "spike")])
def test_the_run_goes_on_as_if_the_batch_had_never_been(corpus, tmp_path, world, how):
    spike = ("run.spike=20",) if how == "spike" else ()
    for name in (how, "spared"):
        ended = trained(corpus, tmp_path / name, name, world, *spike)
        assert ended.status == [0] * world, ended.stderr
        if name == how:
            assert ended.stderr[0].count("step-00000016 and past this batch") == 4  # once for each stage
    for zero in range(4):
        run, spared = tmp_path / how / f"zero-{zero}", tmp_path / "spared" / f"zero-{zero}"
        [entry] = ledger(run)
        assert entry["batch"] == SICK
        assert ("is nan" if how == "nan" else "a spike above") in str(entry["reason"])
        assert logged(run) == logged(spared)
        assert weights(run, STEPS).read_bytes() == weights(spared, STEPS).read_bytes()


def test_the_budget_ends_the_run(corpus, tmp_path):
    ended = trained(corpus, tmp_path, "nan", 1, "run.max_rollbacks=0")
    assert ended.status == [1]
    assert "the optimizer has not moved; `run.max_rollbacks` (=0) are used up" in ended.stderr[0]
    assert not (tmp_path / "zero-0" / "quarantine.jsonl").exists()
