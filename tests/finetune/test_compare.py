"""The paired comparison: worked figures, refusals, and the archive of ranks it reads."""

import numpy as np
import pytest

from finetune.bootstrap import Intervals
from finetune.compare import check_pair, compare, compare_files, to_text, two_sided
from finetune.query_ranks import QueryRanks, digest, ranks_path, read_ranks
from finetune.recall import KS, Ranks, Recall
from finetune.results import RSum
from shards.errors import UserError

IMAGES = 400


def ranks_of(i2t, t2i):
    image_T = np.repeat(np.arange(len(i2t)), len(t2i) // len(i2t))
    return QueryRanks(Ranks(i2t, i2t), Ranks(t2i, t2i), image_T)


@pytest.fixture
def pair(made_up, tmp_path):
    """Two systems on the same hard and easy images; the second gets a tenth of the misses right. Paths of results."""
    rng = np.random.default_rng(0)
    i2t, t2i = (np.where(rng.random(n) < 0.5, 1, 99) for n in (IMAGES, 5 * IMAGES))
    better = [np.where((rank > 1) & (rng.random(len(rank)) < 0.1), 1, rank) for rank in (i2t, t2i)]
    return [
        write(made_up, tmp_path / f"{name}.json", name, ranks_of(*ranks))
        for name, ranks in (("base", (i2t, t2i)), ("tuned", better))
    ]


def write(made_up, path, name, ranks, **changes):
    both = [Recall.of(way.pessimistic) for way in (ranks.i2t, ranks.t2i)]
    made = made_up(name=name)
    fields = {
        "i2t": made.i2t.model_copy(update={"pessimistic": both[0]}),
        "t2i": made.t2i.model_copy(update={"pessimistic": both[1]}),
        "rsum": RSum(pessimistic=both[0].sum + both[1].sum, optimistic=600, intervals=Intervals(*[(0.0, 1.0)] * 7)),
        "ranks": digest(ranks.to_bytes()),
    }
    path.write_text(made_up(name=name, **{**fields, **changes}).model_dump_json())
    ranks_path(path).write_bytes(ranks.to_bytes())
    return path


def test_a_real_difference_is_found(pair):
    found = compare_files(*pair)
    assert (found.first, found.second) == ("base", "tuned")
    for difference in found.differences:
        assert difference.difference == pytest.approx(difference.second - difference.first)
        assert difference.interval[0] < difference.difference < difference.interval[1]
        assert difference.interval[0] > 0
        assert difference.p == pytest.approx(2 / 2001)
    assert [d.name for d in found.differences] == [*(f"{w} R@{k}" for w in ("i2t", "t2i") for k in KS), "RSUM"]
    assert found.only_first == (0, 0)
    assert min(found.only_second) > 0
    assert found.warning == "note: both are the same checkpoint"
    text = to_text(found)
    assert (
        f"images whose right text comes first: 0 only in the first, {found.only_second[0]} only in the second" in text
    )
    assert "RSUM" in text


def test_the_interval_is_that_of_paired_images(made_up):
    """Each image's gain is one coin for all its texts: the binomial over images gives the width."""
    rng = np.random.default_rng(1)
    coin = rng.random(IMAGES) < 0.2
    base = ranks_of(np.full(IMAGES, 99), np.full(5 * IMAGES, 99))
    tuned = ranks_of(np.where(coin, 1, 99), np.repeat(np.where(coin, 1, 99), 5))
    found = compare(made_up(), base, made_up(), tuned)
    low, high = found.differences[3].interval
    assert (high - low) / 2 == pytest.approx(196 * np.sqrt(coin.mean() * (1 - coin.mean()) / IMAGES), rel=0.08)


def test_no_difference_has_no_small_p(pair):
    found = compare_files(pair[0], pair[0])
    assert {(d.difference, d.interval, d.p) for d in found.differences} == {(0.0, (0.0, 0.0), 1.0)}


def test_chance_is_called_chance(made_up, tmp_path):
    rng = np.random.default_rng(2)
    places = [ranks_of(rng.integers(1, 12, 200), rng.integers(1, 12, 1000)) for _ in range(2)]
    paths = [write(made_up, tmp_path / f"{n}.json", str(n), ranks) for n, ranks in enumerate(places)]
    found = compare_files(*paths)
    assert sum(d.interval[0] <= 0 <= d.interval[1] for d in found.differences) >= 6
    assert two_sided(np.array([1.0] * 1000 + [-1.0] * 1000)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data": {"digest": "0" * 64}},
            r"`data\.digest` must be the same in both results; they have fedcba987654 and 0",
        ),
        ({"protocol": {"captions": "first5"}}, r"`protocol\.captions` must be the same .* they have all and first5"),
        ({"protocol": {"folds": 5}}, r"`protocol\.folds` must be the same .* they have 1 and 5"),
        ({"protocol": {"rerank": 64}}, r"`protocol\.rerank` .* they have 32 and 64; compare .* with --any-rerank"),
    ],
)
def test_what_cannot_be_paired_is_refused(made_up, changes, message):
    one = made_up()
    two = made_up(**{name: getattr(one, name).model_copy(update=update) for name, update in changes.items()})
    with pytest.raises(UserError, match=message):
        check_pair(one, two)
    if "rerank" in changes.get("protocol", {}):
        check_pair(one, two, any_rerank=True)


def test_ranks_are_those_of_the_results(pair, tmp_path):
    ranks = read_ranks(pair[0], digest(ranks_path(pair[0]).read_bytes()))
    assert ranks.to_bytes() == ranks_path(pair[0]).read_bytes(), "equal ranks, equal bytes"
    ranks_path(pair[0]).write_bytes(ranks_path(pair[1]).read_bytes())
    with pytest.raises(UserError, match=r"is not the file that base\.json was written with"):
        compare_files(*pair)
    ranks_path(pair[0]).unlink()
    with pytest.raises(UserError, match=r"base\.ranks\.npz\) is not there: `finetune evaluate` writes it"):
        compare_files(*pair)
    ranks_path(pair[0]).write_bytes(b"no archive")
    with pytest.raises(UserError, match="is not an archive of ranks"):
        read_ranks(pair[0], digest(b"no archive"))
