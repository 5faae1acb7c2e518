"""Evaluation under launchers: one, two and three ranks give the same ranks, scores and figures, to the last bit."""

import json
from pathlib import Path

import pytest

from tests.finetune.corpus import checkpoint, save, write_corpus
from tests.ranks import run_launcher

pytestmark = [pytest.mark.slow, pytest.mark.long]
IMAGES = 150  # three blocks of 64 images, two of 256 texts: with three ranks one has no texts
LAUNCHERS = {
    1: "python -m finetune.cli",
    2: "torchrun --nproc-per-node 2 --master-port {port} -m finetune.cli",
    3: "deepspeed --num_gpus 3 --master_port {port} --module finetune.cli",
}
OWN = ("command", "date", "seconds", "machine")  # of a run, not of what it found


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> dict[int, Path]:
    """Results files by the number of ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    corpus, run = write_corpus(folder, train=0, test=IMAGES), save(checkpoint(folder))
    data = ["--annotations", corpus / "dataset.json", "--images", corpus / "images"]
    how = ["--rerank", "12", "--compat", "albef", "--name", "tiny"]
    for world, launcher in LAUNCHERS.items():
        out = folder / f"{world}.json"
        stdout = run_launcher(launcher, "evaluate", "--ckpt", run, *data, *how, "--out", out)
        assert stdout.count("image to text") == 1, "one rank speaks"
    return {world: folder / f"{world}.json" for world in LAUNCHERS}


@pytest.mark.parametrize("world", [2, 3])
def test_figures_do_not_depend_on_the_ranks(measured, world):
    alone, together = (json.loads(measured[n].read_text()) for n in (1, world))
    assert together["machine"].pop("ranks") == world
    assert {k: v for k, v in together.items() if k not in OWN} == {k: v for k, v in alone.items() if k not in OWN}
    assert alone["i2t"]["queries"] == IMAGES, "nothing is padded"
    for suffix in (".ranks.npz", ".gallery.json"):
        one, other = (measured[n].with_suffix(suffix).read_bytes() for n in (1, world))
        assert one == other
