"""`finetune retrieval` under every launcher: the run that one process makes, judged on validation pairs all the way."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.test_matrix import furthest
from tests.finetune.corpus import checkpoint, save, write_corpus
from tests.ranks import run_launcher

pytestmark = [pytest.mark.slow, pytest.mark.long]
LAUNCHERS = {
    "alone": "python -m finetune.cli",
    "accelerate, alone": "accelerate launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no "
    "--dynamo_backend no -m finetune.cli",
    "torchrun": "torchrun --nproc-per-node 2 --master-port {port} -m finetune.cli",
    "deepspeed": "deepspeed --num_gpus 2 --master_port {port} --module finetune.cli",
    "accelerate": "accelerate launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no "
    "--main_process_port {port} -m finetune.cli",
}
SETTINGS = ["data.global_batch=8", "optim.lr=1e-3", "run.steps=6", "run.save_every=3", "run.log_every=1"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> dict[str, Path]:
    """Run folders by launcher."""
    folder = tmp_path_factory.mktemp("launchers")
    corpus, start = write_corpus(folder, train=24, test=16), save(checkpoint(folder))
    annotations = json.loads((corpus / "dataset.json").read_text())
    for entry in annotations["images"]:
        entry["split"] = entry["split"].replace("test", "val")
    (corpus / "dataset.json").write_text(json.dumps(annotations))
    data = ["--annotations", corpus / "dataset.json", "--images", corpus / "images", "--validate", "val"]
    for name, launcher in LAUNCHERS.items():
        words = ["retrieval", "--ckpt", start, *data, *SETTINGS, "--out", folder / name]
        stdout = run_launcher(launcher, *words, timeout=300)
        assert stdout.count("checkpoint: ") == 1, f"{name}: one rank speaks"
    return {name: folder / name for name in LAUNCHERS}


def lines(file: Path, *keys: str) -> list[list[float]]:
    return [[line[key] for key in keys] for line in map(json.loads, file.read_text().splitlines())]


@pytest.mark.parametrize("name", [name for name in LAUNCHERS if name != "alone"])
def test_the_run_is_that_of_one_process(tuned, name):
    alone, other = tuned["alone"], tuned[name]
    losses, expected = (torch.tensor(lines(run / "log.jsonl", "loss")) for run in (other, alone))
    assert len(expected) == 6
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=0)
    ours, theirs = (load_file(run / "best" / "model.safetensors") for run in (alone, other))
    for key_biases, allowed in ((False, 1e-4), (True, 1e-3)):
        assert furthest(theirs, ours, key_biases) < allowed
    judged, same = (lines(run / "validation.jsonl", "step", "rsum") for run in (alone, other))
    assert judged == same


def test_one_process_gives_the_same_bits_under_accelerate(tuned):
    runs = (tuned["alone"], tuned["accelerate, alone"])
    ours, theirs = ((run / "best" / "model.safetensors").read_bytes() for run in runs)
    assert ours == theirs
