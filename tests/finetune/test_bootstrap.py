"""Bootstrap intervals: seeded, clustered, and as wide as theory says."""

import numpy as np
import pytest

from finetune.bootstrap import intervals


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
