"""What runs read: mixtures, URLs, damaged samples."""

import json
import shutil

import pytest

from pretrain.folder import read_lines
from pretrain.train import fit
from shards.errors import DamagedSample, UserError
from shards.sources.scenes import ScenesSource
from shards.write import build_shards
from tests.pretrain.runs import weights
from tests.shards.server import serving


def test_a_mixture_trains_and_a_changed_one_is_not_resumed(configure, corpus, tmp_path):
    other = tmp_path / "other"
    build_shards(ScenesSource(16, seed=5, split="train", size=48), other)
    parts = f"{{place: {corpus.shards}, weight: 3}}, {{place: {other}"
    fit(configure(f"data.shards=[{parts}}}]", "run.steps=2"))
    state = json.loads((tmp_path / "run/checkpoints/step-00000002/state.json").read_text())["stream"]
    assert [(source["name"], source["share"]) for source in state["sources"]] == [("shards", 3), ("other", 1)]
    with pytest.raises(
        UserError, match=r"^`data\.shards` .*'weight': 2\.0, .* must be .*'weight': 1\.0, .*, as in the run"
    ):
        fit(configure(f"data.shards=[{parts}, weight: 2}}]", "run.steps=3", "run.resume=auto"))


def test_training_from_a_url_is_training_from_the_folder(configure, corpus, tmp_path):
    fit(configure("run.steps=2"))
    with serving(corpus.shards) as server:
        cache = tmp_path / "cache"
        fit(configure(f"data.shards={server.url}", f"data.cache={cache}", "run.steps=2", f"run.out={tmp_path / 'far'}"))
    assert weights(tmp_path / "far", 2).read_bytes() == weights(tmp_path / "run", 2).read_bytes()


def test_damaged_samples_are_left_out_and_entered_in_the_runs_ledger(configure, corpus, tmp_path):
    shutil.copytree(corpus.shards, tmp_path / "damaged")
    tar = tmp_path / "damaged/shard-000001.tar"
    content = bytearray(tar.read_bytes())
    content[600] ^= 1
    tar.write_bytes(content)
    fit(configure(f"data.shards={tmp_path / 'damaged'}", "data.damage_budget=0.02", "run.steps=8"))
    (line,) = (tmp_path / "run/damage/rank-00000.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "shard-000001.tar, sample 0: the image does not match its checksum"
    last = read_lines(tmp_path / "run/log.jsonl")[-1]
    assert (last["yielded"], last["substituted"], last["filtered"]) == (last["samples"], 1, 0)
    assert last["read"] == last["samples"] + 1
    with pytest.raises(
        DamagedSample, match=r"^1 of 64 samples are damaged, more than `damage_budget` \(=0\.01\) allows"
    ):
        fit(configure(f"data.shards={tmp_path / 'damaged'}", "run.steps=8", f"run.out={tmp_path / 'strict'}"))
