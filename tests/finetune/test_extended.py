"""ECCV-Caption and CxC: places worked by hand, and the package itself on the real COCO ids with random scores."""

import json
import warnings

import numpy as np
import pytest

from finetune.extended import GroundTruth, coco_ids, extended, fits, installed, load_ground_truth
from finetune.precision import first_place, map_at_r, ordered, places, r_precision
from finetune.ranking import Side, rank
from finetune.retrieval import RetrievalSet
from finetune.score import Similarity


def test_places_by_hand():
    scores = np.array([0.9, 0.5, 0.5, 0.7, 0.1], np.float32)
    assert places(scores, np.array([1, 0])).tolist() == [1, 4], "text 2 ties with text 1 and goes before it"
    assert places(scores, np.array([1, 2])).tolist() == [3, 4], "positives that tie with each other do not"
    assert places(scores, np.array([4])).tolist() == [5]
    for positives in ([1, 0], [1, 2], [4], [2, 3]):
        assert first_place(scores, np.array(positives)) == places(scores, np.array(positives))[0]


def test_precisions_by_hand():
    """Right ones at places 1, 3 and 7 of R = 3: two of the first three, precision 1 and 2/3 there."""
    found = np.array([1, 3, 7])
    assert r_precision(found) == pytest.approx(2 / 3)
    assert map_at_r(found) == pytest.approx((1 + 2 / 3) / 3)
    assert map_at_r(np.array([4, 5, 6])) == 0
    assert map_at_r(np.array([1, 2])) == r_precision(np.array([1, 2])) == 1


def test_two_stages_in_one_score():
    first = np.array([[0.9, 0.8, 0.7, 0.6], [0.1, 0.2, 0.3, 0.3]], np.float32)
    candidates, second = np.array([[0, 2], [2, 3]]), np.array([[-700.00001, -600.0], [5.0, 5.0]])
    scores = ordered(first, candidates, second)
    assert np.argsort(-scores[0]).tolist() == [2, 0, 1, 3]
    assert scores[1, 2] == scores[1, 3] > scores[1, 1] > scores[1, 0]


@pytest.fixture(scope="module")
def coco(test_data):
    """The real COCO 5K test set without its pictures."""
    entries = json.loads((test_data / "annotations" / "coco_test5k_karpathy_format.json").read_text())["images"]
    texts = [sentence["raw"] for entry in entries for sentence in entry["sentences"]]
    image_T = np.repeat(np.arange(len(entries)), [len(entry["sentences"]) for entry in entries])
    metadata = [{"cocoid": entry["cocoid"], "sentids": entry["sentids"]} for entry in entries]
    return RetrievalSet(None, "all", [str(entry["cocoid"]) for entry in entries], texts, image_T, metadata)


@pytest.fixture(scope="module")
def thousand(coco):
    """Its first thousand images."""
    part = coco.texts_of(999).stop
    return RetrievalSet(None, "all", coco.keys[:1000], coco.texts[:part], coco.image_T[:part], coco.metadata[:1000])


@pytest.mark.skipif(not installed(), reason="eccv_caption is not installed")
def test_against_eccv_caption(thousand):
    """Its own figures of a ranking in two stages, on scores without ties; many positives are out of the gallery."""
    truth = load_ground_truth()
    images, texts = coco_ids(thousand)
    asked = {"i2t": set(images), "t2i": set(texts)}
    ways = {f"{name}_{way}": getattr(truth, f"{name}_{way}") for name in ("eccv", "cxc") for way in asked}
    ways = {key: {q: items for q, items in found.items() if q in asked[key[-3:]]} for key, found in ways.items()}
    truth = GroundTruth(**ways, images=frozenset(images), texts=truth.texts & set(texts))
    assert len(truth.texts) == 5000 < len(texts), "a sixth caption has to be left out"
    similarity = scores_of(thousand)
    fold = thousand.folds(1)[0]
    matched = np.random.default_rng(1).permutation(similarity.size).astype(np.float32)

    class Matching:
        def matching(self, image, text):
            return matched[image * len(texts) + text]

    i2t, t2i = rank(Matching(), Similarity.both(similarity), [Side(fold, True), Side(fold, False)], 16, "itm")
    ours = extended(thousand, truth, Similarity.both(similarity), i2t, t2i)
    known = np.array([place for place, text in enumerate(texts) if text in truth.texts])
    i2t_items = sorted_ids(i2t.ordered(similarity, slice(None))[:, known], images, np.array(texts)[known])
    t2i_items = sorted_ids(t2i.ordered(similarity.T, slice(None)), texts, np.array(images))
    theirs = their_figures(i2t_items, t2i_items, truth)
    for way in ("i2t", "t2i"):
        mine = getattr(ours, way).model_dump()
        assert mine == pytest.approx({name: 100 * value[way] for name, value in theirs.items()}), way
    assert ours.i2t.cxc_r10 > ours.i2t.cxc_r1 > 0
    assert ours.t2i.eccv_map_at_r > 0


def scores_of(data):
    """Random, tie-free, right pairs lifted so that no figure is zero or full."""
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((len(data.keys), len(data.texts)), dtype=np.float32)
    scores[data.image_T, np.arange(len(data.texts))] += rng.uniform(2, 5, len(data.texts)).astype(np.float32)
    return scores


def their_figures(i2t_items, t2i_items, truth):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where ujson is missing
        from eccv_caption import Metrics
    metrics = Metrics()
    metrics.eccv_gts = {"i2t": truth.eccv_i2t, "t2i": truth.eccv_t2i}
    metrics.cxc_gts = {"i2t": truth.cxc_i2t, "t2i": truth.cxc_t2i}
    names = ("eccv_r1", "eccv_map_at_r", "eccv_rprecision", "cxc_recalls")
    found = metrics.compute_all_metrics(i2t_items, t2i_items, target_metrics=names)
    return {("eccv_r_precision" if name == "eccv_rprecision" else name): found[name] for name in found}


def sorted_ids(scores, queries, gallery):
    most = 60  # more than the largest R
    return {query: gallery[best(row, most)].tolist() for query, row in zip(queries, scores, strict=True)}


def best(row, count):
    top = np.argpartition(-row, count)[:count]
    return top[np.argsort(-row[top])]


@pytest.mark.skipif(not installed(), reason="eccv_caption is not installed")
def test_the_set_that_fits(coco):
    truth = load_ground_truth()
    assert fits(coco, truth)
    assert [len(ids) for ids in coco_ids(coco)] == [5000, 25010]
    unnamed = RetrievalSet(None, "all", coco.keys, coco.texts, coco.image_T, [{} for _ in coco.keys])
    assert not fits(unnamed, truth)
    part = coco.texts_of(4999).stop - 30
    fewer = RetrievalSet(None, "all", coco.keys[:4990], coco.texts[:part], coco.image_T[:part], coco.metadata[:4990])
    assert not fits(fewer, truth)
