"""Ranks against matrices worked by hand, an obvious slow loop, and pytrec_eval on the real COCO ids."""

import itertools
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from finetune.recall import KS, Positives, Ranks, Recall, ranks, recall_at, reranked_ranks, tied_fraction


def slow_ranks(scores, lists):
    """Every order of ties that matters, one query at a time."""
    optimistic, pessimistic = [], []
    for row, positives in zip(scores.tolist(), lists, strict=True):
        best = max(row[p] for p in positives)
        wrong = [score for item, score in enumerate(row) if item not in positives]
        optimistic.append(1 + sum(score > best for score in wrong))
        pessimistic.append(1 + sum(score >= best for score in wrong))
    return optimistic, pessimistic


def sorted_rank(scores, positives, positives_first):
    """The place of the first positive after sorting by score, ties broken for or against the positives."""
    order = sorted(range(len(scores)), key=lambda item: (-scores[item], (item in positives) != positives_first))
    return 1 + next(place for place, item in enumerate(order) if item in positives)


def ragged(rng, queries, gallery):
    return [rng.choice(gallery, rng.integers(1, 5), replace=False) for _ in range(queries)]


def test_by_hand():
    scores = np.array(
        [[0.9, 0.5, 0.1, 0.3], [0.9, 0.5, 0.5, 0.3], [0.2, 0.7, 0.7, 0.7], [0.1, 0.1, 0.1, 0.1]], np.float32
    )
    result = ranks(scores, Positives([[1], [1, 3], [1, 2], [0]]))
    assert result.optimistic.tolist() == [2, 2, 1, 1]
    assert result.pessimistic.tolist() == [2, 3, 2, 4]
    assert tied_fraction(result) == 0.75


def test_positives_that_tie_with_each_other_cost_nothing():
    scores = np.array([[0.7, 0.7, 0.7, 0.1]], np.float32)
    result = ranks(scores, Positives([[0, 1, 2]]))
    assert (result.optimistic.tolist(), result.pessimistic.tolist()) == ([1], [1])
    assert tied_fraction(result) == 0


def test_recall_of_ranks_by_hand():
    recall = Recall.of(np.array([1, 1, 2, 6, 11]))
    assert recall == Recall(r1=40.0, r5=60.0, r10=80.0, median=2.0, mean=4.2)
    assert recall.sum == 180.0
    assert Recall.mean_of([recall, Recall(0, 20, 40, 4, 5.8)]) == Recall(20, 40, 60, 3, 5)


@pytest.mark.parametrize("seed", range(5))
def test_against_the_slow_loop(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    monkeypatch.setattr("finetune.recall.CHUNK_ELEMENTS", 100)  # several chunks, the last one short
    scores = rng.integers(0, 6, (37, 23)).astype(np.float32)
    lists = ragged(rng, 37, 23)
    result = ranks(scores, Positives(lists))
    assert (result.optimistic.tolist(), result.pessimistic.tolist()) == slow_ranks(scores, lists)
    for row, positives, low, high in zip(scores.tolist(), lists, result.optimistic, result.pessimistic, strict=True):
        assert sorted_rank(row, positives, True) == low
        assert sorted_rank(row, positives, False) == high


def test_a_transposed_view_is_ranked_like_its_copy():
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((40, 30)).astype(np.float32)
    positives = Positives(ragged(rng, 30, 40))
    np.testing.assert_array_equal(ranks(scores.T, positives).pessimistic, ranks(scores.T.copy(), positives).pessimistic)


@pytest.mark.parametrize("seed", range(5))
def test_reranking_against_sorting_by_both_scores(seed):
    rng = np.random.default_rng(seed)
    queries, gallery, k = 29, 17, 6
    first = rng.integers(0, 8, (queries, gallery)).astype(np.float32)
    second = rng.integers(0, 3, (queries, k)).astype(np.float32)
    lists = ragged(rng, queries, gallery)
    candidates = np.argsort(-first, axis=1, kind="stable")[:, :k]
    positives = Positives(lists)
    best = np.array([max(row[p] for p in ps) for row, ps in zip(first, lists, strict=True)])
    tied = (np.take_along_axis(first, candidates, 1) == best[:, None]).sum(1)
    result = reranked_ranks(ranks(first, positives), positives, candidates, tied, second)
    for query in range(queries):
        chosen = dict(zip(candidates[query].tolist(), second[query].tolist(), strict=True))
        final = [(1, chosen[item]) if item in chosen else (0, first[query, item]) for item in range(gallery)]
        for positives_first, rank in ((True, result.optimistic[query]), (False, result.pessimistic[query])):
            order = sorted(
                range(gallery), key=lambda i: (final[i], (i in lists[query]) == positives_first), reverse=True
            )
            assert 1 + next(place for place, item in enumerate(order) if item in lists[query]) == rank


@pytest.mark.parametrize(
    ("scores", "lists", "message"),
    [
        (np.full((1, 2), np.nan, np.float32), [[0]], "not all finite"),
        (np.array([[1, np.inf]], np.float32), [[0]], "not all finite"),
        (np.zeros((1, 2), np.float16), [[0]], r"`scores` \(float16\) must be float32 or float64"),
        (np.zeros((2, 2), np.float32), [[0]], "one row for each of 1 queries"),
        (np.zeros((1, 2), np.float32), [[2]], "outside the gallery of 2"),
        (np.zeros((1, 2), np.float32), [[-1]], "outside the gallery of 2"),
        (np.zeros((2, 2), np.float32), [[0], []], "query 1 has no positive"),
        (np.zeros((2, 2), np.float32), [[0], [1, 1]], "query 1 names one of its positives twice"),
    ],
)
def test_refusals(scores, lists, message):
    with pytest.raises(ValueError, match=message):
        ranks(scores, Positives(lists))


def test_reranking_refuses_a_score_that_is_not_finite():
    first = Ranks(np.array([1]), np.array([1]))
    with pytest.raises(ValueError, match="re-ranking scores are not all finite"):
        reranked_ranks(first, Positives([[0]]), np.array([[0]]), np.array([1]), np.array([[np.nan]], np.float32))


@pytest.fixture(scope="module")
def coco():
    """Text ids and their image's place, of the real COCO 5K test split."""
    if "DUOSTREAM_TEST_DATA" not in os.environ:
        pytest.skip("DUOSTREAM_TEST_DATA is unset")
    file = Path(os.environ["DUOSTREAM_TEST_DATA"]) / "annotations" / "coco_test5k_karpathy_format.json"
    images = json.loads(file.read_text())["images"]
    return [[sentence["sentid"] for sentence in image["sentences"]] for image in images]


def test_coco_ids_against_pytrec_eval(coco):
    """The real ids and ragged captions, random scores without ties, every 100th image as a query."""
    import pytrec_eval

    text_ids = [text for image in coco for text in image]
    assert (len(coco), len(text_ids)) == (5000, 25010)
    place = {text: index for index, text in enumerate(text_ids)}
    queries = coco[::100]
    rng = np.random.default_rng(0)
    scores = np.stack([rng.permutation(len(text_ids)) for _ in queries]).astype(np.float32)
    for row, texts in zip(scores, queries, strict=True):  # lift some positives so that all three recalls differ from 0
        row[place[texts[0]]] = len(text_ids) - rng.integers(1, 20) + 0.5
    result = ranks(scores, Positives([[place[text] for text in texts] for texts in queries]))
    names = [str(text) for text in text_ids]
    run = {str(q): dict(zip(names, row.tolist(), strict=True)) for q, row in enumerate(scores)}
    truth = {str(q): {str(text): 1 for text in texts} for q, texts in enumerate(queries)}
    measured = pytrec_eval.RelevanceEvaluator(truth, {"success.1,5,10"}).evaluate(run)
    for k in KS:
        expected = 100 * np.mean([measured[str(q)][f"success_{k}"] for q in range(len(queries))])
        assert recall_at(result.pessimistic, k) == pytest.approx(expected)
    assert recall_at(result.pessimistic, 10) > recall_at(result.pessimistic, 1)
    np.testing.assert_array_equal(result.pessimistic, result.optimistic)


@pytest.mark.slow
def test_coco_size_is_ranked_in_seconds(coco):
    """Measured 0.34 s for both directions on two cores; the bound is for a busy machine."""
    starts = np.cumsum([0, *map(len, coco)])
    texts = [np.arange(a, b) for a, b in itertools.pairwise(starts)]
    images = [[image] for image, own in enumerate(texts) for _ in own]
    scores = np.random.default_rng(0).standard_normal((len(texts), len(images)), dtype=np.float32)
    begin = time.perf_counter()
    ranks(scores, Positives(texts))
    ranks(scores.T, Positives(images))
    assert time.perf_counter() - begin < 15
