"""A results file of made-up figures that can be worked by hand."""

from pathlib import Path

import pytest

from finetune.bootstrap import Intervals
from finetune.recall import Recall
from finetune.results import (
    CheckpointFacts,
    DataFacts,
    Direction,
    Example,
    Examples,
    FirstStage,
    Found,
    Protocol,
    Results,
    RSum,
)


@pytest.fixture
def made_up():
    """Builds `Results`; keyword arguments replace fields."""
    return build


def build(name="ours", dataset="scenes", k=32, **changes):
    i2t, t2i = Recall(70.0, 90.0, 95.5, 1.0, 3.25), Recall(60.0, 85.0, 92.0, 1.0, 4.5)
    first = FirstStage(recall=Recall(50.0, 80.0, 90.0, 1.0, 6.0), ceiling=97.0, boundary_ties=0)
    shared = {"optimistic": i2t, "tied": 0.01, "first_stage": first if k else None}
    fields = {
        "name": name,
        "stream": "dual",
        "checkpoint": CheckpointFacts(digest="0123456789abcdef" * 4, run="run", name="step-00000600", step=600),
        "data": DataFacts(name=dataset, dataset=dataset, digest="fedcba9876543210" * 4, images=500, texts=2500),
        "pretraining_data": "scenes-train",
        "protocol": Protocol(captions="all", rerank=k, score="itm" if k else "itc"),
        "i2t": Direction(queries=500, pessimistic=i2t, **shared),
        "t2i": Direction(queries=2500, pessimistic=t2i, **{**shared, "optimistic": t2i}),
        "rsum": RSum(
            pessimistic=492.5,
            optimistic=492.5,
            intervals=Intervals(
                i2t_r1=(66.0, 74.0),
                i2t_r5=(87.5, 92.5),
                i2t_r10=(93.5, 97.5),
                t2i_r1=(57.5, 62.5),
                t2i_r5=(83.0, 87.0),
                t2i_r10=(90.5, 93.5),
                rsum=(484.25, 500.75),
            ),
        ),
        "ranks": "feedbeef" * 8,
        "command": "finetune evaluate --ckpt run --shards test --out results.json",
        "versions": {"torch": "2.15.0"},
        "machine": {"cpus": 2},
        "date": "2026-11-21T04:00:00+00:00",
        "seconds": 12.0,
        "examples_i2t": examples(""),
        "examples_t2i": examples("a red <kite> over water"),
    }
    return Results(**{**fields, **changes})


def examples(text):
    bad = [Found(key="k1", text="a dog", score=2.0, right=False)]
    good = [Found(key="k0", text="a red kite", score=3.5, right=True), *bad]
    sample = Example(key="k0", text=text, captions=["a red kite", "one kite"], rank=1, found=good)
    worst = Example(key="k2", text=text, captions=["two boats"], rank=417, found=bad)
    return Examples(sample=[sample], worst=[worst])


@pytest.fixture
def results_file(tmp_path, made_up):
    """Writes a results file; returns its path."""

    def write(name="results.json", **changes) -> Path:
        path = tmp_path / name
        path.write_text(made_up(**changes).model_dump_json(indent=1))
        return path

    return write
