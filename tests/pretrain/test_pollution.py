"""Polluted texts: how many, whose, and that the number of ranks and workers changes nothing."""

import numpy as np
import pytest
import torch

from pretrain.config import PretrainConfig
from pretrain.data.loader import Preparation
from pretrain.data.pollution import draw_other
from pretrain.data.tokenizer import Tokenizer
from shards.errors import DamagedSample
from shards.reader import ShardSet
from shards.sample import Identity, Sample
from shards.sources.scenes import ScenesSource
from shards.stream import ShardStream, StreamedSample

KINDS = {
    "second": ("data.second=tags", "objectives={pollution: {probability: 0.4}, mlm: {}}"),
    "three_way": ("data.second=tags", "objectives={pollution: {kind: three_way}, mlm: {}}"),
    "captions": ("data.second=caption", "objectives={pollution: {}, mlm: {}}"),
}


def batches(config: PretrainConfig, steps: int, *, rank: int = 0, world: int = 1, workers: int = 0):
    source = ShardSet(config.data.shards)
    preparation = Preparation(config, Tokenizer(config.data.tokenizer), [source])
    place = {"rank": rank, "world": world, "workers": workers}
    stream = ShardStream(source, 8, **place, transform=preparation.transform, collate=preparation.collate)
    return list(stream.batches(steps))


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_and_workers_change_nothing(configure, kind):
    config = configure(*KINDS[kind])
    whole = batches(config, 3)
    assert any(batch.pollution_B.any() for batch in whole)
    halves = [batches(config, 3, rank=rank, world=2, workers=rank) for rank in (0, 1)]
    for expected, *parts in zip(whole, *halves, strict=True):
        assert torch.equal(expected.pollution_B, torch.cat([part.pollution_B for part in parts]))
        for row in range(8):
            part, mask = parts[row // 4], expected.token_mask_BL[row]
            found = part.token_ids_BL[row % 4][part.token_mask_BL[row % 4]]
            assert torch.equal(expected.token_ids_BL[row][mask], found)


def parts_of(config: PretrainConfig, corpus, draws: int):
    """The parts of the first sample's text at many places of the order, and the sample."""
    source = ShardSet(corpus.shards)
    preparation = Preparation(config, Tokenizer(config.data.tokenizer), [source])
    items = [StreamedSample(source.identity(0), source[0], 0, position, 0) for position in range(draws)]
    return [preparation._parts(item, item.rng()) for item in items], source[0]


def test_shares_and_sides_are_those_of_the_kind(configure, corpus):
    parts, own = parts_of(configure(*KINDS["three_way"]), corpus, 300)
    labels = np.array([part.label for part in parts])
    assert [(labels == label).mean() for label in range(3)] == pytest.approx(
        [0.5, 0.25, 0.25], abs=0.09
    )  # 3 standard errors
    for part in parts:
        assert (part.caption == own) == (part.label != 1)
        assert (part.second == own) == (part.label != 2)
    parts, own = parts_of(configure(*KINDS["second"]), corpus, 300)
    assert np.mean([part.label for part in parts]) == pytest.approx(0.4, abs=0.09)  # 3 standard errors
    assert all(part.caption == own and (part.second == own) == (part.label == 0) for part in parts)


class Damaged(ScenesSource):
    """Scenes of which those with odd numbers cannot be read."""

    def __getitem__(self, index: int) -> Sample:
        if index % 2:
            raise DamagedSample(f"sample {index}")
        return super().__getitem__(index)


def test_others_are_of_another_group_and_whole():
    one, two = Damaged(6, seed=0, split="train"), Damaged(4, seed=1, split="train")

    def group(identity: Identity, sample: Sample) -> int:
        return identity.ordinal

    found = [draw_other([one, two], group, 2, np.random.default_rng(seed)) for seed in range(200)]
    keys = {(sample.key, sample.image) for sample in found if sample}
    expected = {(source[i].key, source[i].image) for source in (one, two) for i in range(0, len(source), 2) if i != 2}
    assert keys == expected
    assert draw_other([Damaged(1, seed=0, split="train")], group, 0, np.random.default_rng(0)) is None
