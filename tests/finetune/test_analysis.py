"""The analysis behind the report, against figures that can be worked by hand and against the evaluation itself."""

import numpy as np
import pytest

from finetune.analysis import confusions, groups_of, histogram, missed_words, rerank_curve
from finetune.evaluate import Options, evaluate
from finetune.facts import Labels
from finetune.ranking import Side, rank
from finetune.retrieval import RetrievalSet
from finetune.score import Similarity
from shards.errors import UserError
from tests.finetune.corpus import Corpus, checkpoint

LABELS = Labels(name="tiny", data="corpus", dataset="corpus", pretraining_data="", command="finetune evaluate")


class Fixed:
    """A matching head that says what it is told."""

    def __init__(self, logits):
        self.logits = logits

    def matching(self, image, text):
        return self.logits[image, text]


def retrieval_set(images, per_image=2, **metadata):
    image_T = np.repeat(np.arange(images), per_image)
    entries = [{name: values[image] for name, values in metadata.items()} for image in range(images)]
    texts = [f"text {n}" for n in range(len(image_T))]
    return RetrievalSet(None, "all", [str(n) for n in range(images)], texts, image_T, entries)


def test_words_that_miss():
    texts = ["a red kite"] * 20 + ["a blue kite"] * 20 + ["A RED boat"] * 4 + ["rare"] * 2
    rank = np.array([1] * 20 + [1, 9] + [9] * 18 + [1] * 4 + [9] * 2)
    found = missed_words(texts, rank)
    assert [word.word for word in found] == ["blue"], "rare ones, and kite at 52 % of 40 against 67 %, are left out"
    blue = found[0]
    assert (blue.texts, blue.r1, blue.others_r1) == (20, 5.0, pytest.approx(100 * 24 / 26))
    assert missed_words(texts, np.ones(46, np.int64)) == []


def test_confusions_by_hand():
    """Image 0 (cats) is answered by a text of image 1 (dogs), image 2 (dogs) by one of image 1."""
    data = retrieval_set(3, kind=["cat", "dog", "dog"])
    scores = np.array([[1, 2, 9, 3, 4, 5], [0, 0, 9, 0, 0, 0], [0, 0, 7, 0, 1, 2]], np.float32)
    fold = data.folds(1)[0]
    i2t, t2i = rank(Fixed(scores), Similarity.both(scores), [Side(fold, True), Side(fold, False)], 0, "itm")
    found = confusions(data, [i2t], groups_of(data, "kind"))
    assert [(c.own, c.found, c.queries, c.of) for c in found] == [("cat", "dog", 1, 1), ("dog", "dog", 1, 2)]
    found = confusions(data, [t2i], groups_of(data, "kind"))
    assert sum(c.queries for c in found) == 4, "texts 2, 3 (place 0 or tied), 4 and 5 go to image 0"
    with pytest.raises(UserError, match=r"`--group-by` \(=colour\) must be in every image's metadata; 0 has kind"):
        groups_of(data, "colour")


@pytest.mark.parametrize("folds", [1, 3])
def test_each_k_is_what_an_evaluation_with_that_k_gives(folds):
    data = retrieval_set(90, per_image=2)
    rng = np.random.default_rng(0)
    right = np.arange(90)[:, None] == data.image_T
    cosine = np.round(rng.standard_normal(right.shape) + 1.5 * right, 1).astype(np.float32)
    logits = np.round(rng.standard_normal(right.shape) + 2.5 * right, 1).astype(np.float32)
    parts = data.folds(folds)
    sides = [Side(part, True) for part in parts] + [Side(part, False) for part in parts]

    def ranked(k):
        found = rank(Fixed(logits), Similarity.both(cosine), sides, k, "itm")
        return found[:folds], found[folds:]

    points = rerank_curve(Similarity.both(cosine), *ranked(25))
    assert [point.k for point in points] == [0, 10, 20, 25]
    for point in points:
        ways = ranked(point.k)
        r1 = [100 * np.mean([np.mean(fold.ranks.pessimistic == 1) for fold in way]) for way in ways]
        assert (point.i2t_r1, point.t2i_r1) == pytest.approx(tuple(r1))
        if point.k:
            ceilings = [100 * np.mean([fold.stage.found_Q.mean() for fold in way]) for way in ways]
            assert (point.i2t_ceiling, point.t2i_ceiling) == pytest.approx(tuple(ceilings))
    assert rerank_curve(Similarity.both(cosine), *ranked(0)) == []


def test_histogram_against_counting(monkeypatch):
    monkeypatch.setattr("finetune.recall.CHUNK_ELEMENTS", 50)
    data = retrieval_set(20)
    scores = np.random.default_rng(0).standard_normal((20, 40)).astype(np.float32)
    found = histogram(scores, data.image_T, data.folds(1), "itc")
    right = scores[data.image_T, np.arange(40)]
    assert sum(found.right) == pytest.approx(1)
    assert sum(found.wrong) == pytest.approx(1)
    for bin_, (low, high) in enumerate(zip(found.edges, found.edges[1:], strict=False)):
        inside = (scores >= low) & ((scores < high) | (bin_ == 39))
        own = (right >= low) & ((right < high) | (bin_ == 39))
        assert found.right[bin_] == pytest.approx(own.sum() / 40)
        assert found.wrong[bin_] == pytest.approx((inside.sum() - own.sum()) / (800 - 40))


def test_a_histogram_of_folds_counts_what_they_rank():
    data = retrieval_set(20)
    scores = np.random.default_rng(0).standard_normal((20, 40)).astype(np.float32)
    across = data.image_T // 5 != np.arange(20)[:, None] // 5
    lacking = np.where(across, np.float32(np.nan), scores)
    assert histogram(lacking, data.image_T, data.folds(4), "itm") == histogram(
        scores, data.image_T, data.folds(4), "itm"
    )
    found = histogram(scores, data.image_T, data.folds(4), "itm")
    assert (found.edges[0], found.edges[-1]) == pytest.approx((np.nanmin(lacking), np.nanmax(lacking)))


def test_results_carry_it(tmp_path):
    data = RetrievalSet.from_source(Corpus(18))
    measured = evaluate(checkpoint(tmp_path), data, LABELS, Options(rerank=12)).results
    assert measured.analysis is not None
    last = measured.analysis.rerank[-1]
    assert last.rsum == pytest.approx(measured.rsum.pessimistic)
    assert last.i2t_ceiling == pytest.approx(measured.i2t.first_stage.ceiling)
    assert measured.analysis.histogram.score == "itc"
    assert measured.analysis.group_by == ""
