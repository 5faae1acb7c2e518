"""Bootstrap intervals: seeded, clustered, and as wide as theory says."""

import numpy as np
import pytest

from finetune.bootstrap import NAMES, draws
from finetune.bootstrap import intervals as intervals_of
from finetune.query_ranks import QueryRanks
from finetune.recall import KS, Ranks, Recall


def query_ranks(i2t, t2i, image):
    return QueryRanks(Ranks(i2t, i2t), Ranks(t2i, t2i), image)


def intervals(i2t, t2i, image, folds=1, **settings):
    return intervals_of(query_ranks(i2t, t2i, image), folds, **settings)


def test_seeded_and_around_the_estimate():
    rng = np.random.default_rng(0)
    i2t, t2i, image = rng.integers(1, 12, 200), rng.integers(1, 12, 1000), np.repeat(np.arange(200), 5)
    first = intervals(i2t, t2i, image)
    assert first == intervals(i2t, t2i, image)
    assert first != intervals(i2t, t2i, image, seed=1)
    assert first.i2t_r1[0] < 100 * np.mean(i2t == 1) < first.i2t_r1[1]
    assert first.t2i_r1[0] < 100 * np.mean(t2i == 1) < first.t2i_r1[1]
    assert first.rsum[0] < sum(100 * np.mean(r <= k) for r in (i2t, t2i) for k in (1, 5, 10)) < first.rsum[1]


def test_captions_of_an_image_are_not_independent():
    """With captions that all succeed or all fail, five captions say no more than one."""
    hit = np.random.default_rng(0).random(1000) < 0.5
    rank = np.where(hit, 1, 99)
    found = intervals(rank, np.repeat(rank, 5), np.repeat(np.arange(1000), 5))
    assert found.t2i_r1 == pytest.approx(found.i2t_r1, abs=1e-9)
    half_width = (found.t2i_r1[1] - found.t2i_r1[0]) / 2
    assert half_width == pytest.approx(
        1.96 * 100 * 0.5 / np.sqrt(1000), rel=0.06
    )  # binomial over images; bootstrap noise 3 %


def test_certain_results_have_no_width():
    ones = np.ones(50, np.int64)
    assert intervals(ones, ones, np.arange(50)).rsum == (600.0, 600.0)


def test_ragged_captions_are_weighted_by_text():
    """Image 0 has three hits, image 1 one miss: the draws are 0, 75 or 100 percent of texts, not 50."""
    found = intervals(np.array([1, 1]), np.array([1, 1, 1, 9]), np.array([0, 0, 0, 1]))
    assert found.t2i_r1 == (0.0, 100.0)


def test_every_recall_has_its_interval():
    rng = np.random.default_rng(0)
    ranks = query_ranks(rng.integers(1, 12, 200), rng.integers(1, 12, 1000), np.repeat(np.arange(200), 5))
    drawn = draws(ranks)
    recalls = [100 * np.mean(way.pessimistic <= k) for way in (ranks.i2t, ranks.t2i) for k in KS]
    for name, column, value in zip(NAMES, drawn.T, [*recalls, sum(recalls)], strict=True):
        assert column.mean() == pytest.approx(value, abs=3 * column.std() / np.sqrt(len(column)) + 1e-9), name
        low, high = getattr(intervals_of(ranks), name)
        assert low < value < high
    np.testing.assert_allclose(drawn[:, 6], drawn[:, :6].sum(1))


def test_folds_draw_apart_and_are_averaged_like_the_headline():
    """One fold is certain, the other is not: the width is half of the uncertain one's, and its weight is a half
    although it has most of the texts."""
    rng = np.random.default_rng(0)
    sure, image_1 = np.ones(100, np.int64), np.arange(100)
    rank, image_2 = rng.integers(1, 3, 100), np.repeat(np.arange(100), 3)
    texts = np.repeat(rank, 3)
    both = query_ranks(
        np.concatenate([sure, rank]), np.concatenate([sure, texts]), np.concatenate([image_1, 100 + image_2])
    )
    alone, together = draws(query_ranks(rank, texts, image_2)), draws(both, folds=2)
    assert together[:, 3].std() == pytest.approx(alone[:, 3].std() / 2, rel=0.1)
    headline = Recall.mean_of([Recall.of(sure), Recall.of(texts)]).r1
    assert together[:, 3].mean() == pytest.approx(headline, abs=0.3)
