"""Similarities of a shard set's pairs, from a checkpoint to the filter that uses them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from finetune.search.encoder import Encoder
from finetune.similarity import BATCH, best_similarity, score_shards
from pretrain.checkpoint import load_checkpoint
from shards.reader import ShardSet
from shards.write import build_shards
from tests.finetune.corpus import Corpus, checkpoint, save

SAMPLES = BATCH + 10


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    return save(checkpoint(tmp_path_factory.mktemp("ckpt")))


@pytest.fixture
def folder(tmp_path) -> Path:
    build_shards(Corpus(SAMPLES), tmp_path / "shards", samples_per_shard=40)
    return tmp_path / "shards"


def damage_image(folder: Path, index: int) -> None:
    """Changes a byte inside the image of one sample."""
    shards = ShardSet(folder)
    name, _ = shards.place(index)
    tar, image = folder / name, shards[index].image
    content = bytearray(tar.read_bytes())
    content[content.index(image) + len(image) // 2] ^= 1
    tar.write_bytes(content)


def test_scores_are_those_of_one_pair_after_the_other(ckpt, folder):
    shards, encoder = ShardSet(folder), Encoder(load_checkpoint(ckpt))
    scored = score_shards(str(ckpt), shards)
    assert scored.indices_N.tolist() == list(range(SAMPLES))
    for index in (0, BATCH - 1, BATCH, SAMPLES - 1):
        sample = shards[index]
        image_E = encoder.images([sample]).embedding_BE[0]
        slow = max(float(torch.dot(image_E, encoder.texts([text]).embedding_BE[0])) for text in sample.captions)
        assert scored.similarity_N[index] == pytest.approx(slow, abs=1e-5)  # 2e-7 measured: padding of a longer batch


def test_texts_belong_to_their_own_image(ckpt):
    encoder, samples = Encoder(load_checkpoint(ckpt)), Corpus(6).samples
    alone = np.concatenate([best_similarity(encoder, [sample]) for sample in samples])
    np.testing.assert_allclose(best_similarity(encoder, samples), alone, atol=1e-5)


def test_damaged_samples_are_left_out(ckpt, folder):
    for index in (3, SAMPLES - 1):
        damage_image(folder, index)
    scored = score_shards(str(ckpt), ShardSet(folder))
    assert scored.left_out == 2
    assert scored.indices_N.tolist() == [index for index in range(SAMPLES) if index not in (3, SAMPLES - 1)]


def test_the_command_of_shards_and_the_filter(ckpt, folder, tmp_path):
    """`shards score` is there because this package is installed; the filter keeps what it should."""
    out, kept = tmp_path / "scores.parquet", tmp_path / "kept.parquet"

    def run(*words):
        command = [sys.executable, "-m", "shards.cli", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    ended = run("score", folder, "--ckpt", ckpt, "--out", out, "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["samples"] == SAMPLES
    similarity_N = pq.read_table(out)["similarity"].to_numpy()
    least = float(np.median(similarity_N))
    ended = run("filter", folder, "--scores", out, "--filter", f"min_similarity={least!r}", "--list", kept)
    assert ended.returncode == 0, ended.stderr
    shards, chosen = ShardSet(folder), pq.read_table(kept).to_pylist()
    expected = [shards.identity(i) for i in range(SAMPLES) if similarity_N[i] >= least]
    assert [(row["shard"], row["ordinal"]) for row in chosen] == expected
    again = run("score", folder, "--ckpt", ckpt, "--out", out)
    assert again.returncode == 2
    assert f"`out` (={out}) exists: give --overwrite to replace it" in again.stderr
