"""Each kind of search against sorting every score, before and after a round trip to disk; tuning and its figures."""

import numpy as np
import pytest

from finetune.search.nearest import Exact, build, load, ranked
from finetune.search.tune import measure, share_found, tenth_scores, tune
from shards.errors import UserError

KINDS = ["exact", "hnsw", "ivfpq", "binary"]


@pytest.fixture(scope="module")
def made():
    """1,200 images and 90 queries on the sphere, in clusters."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((30, 32))
    x = centres[rng.integers(30, size=1290)] + 0.7 * rng.standard_normal((1290, 32))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return x[:1200], x[1200:]


def by_sorting(query_E, embedding_IE, k):
    scores = [float(query_E @ row) for row in embedding_IE]
    return sorted(range(len(scores)), key=lambda i: -scores[i])[:k]


@pytest.fixture(scope="module")
def stages(made):
    pytest.importorskip("faiss")
    return {kind: build(kind, made[0], 64) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_largest_effort_it_is_exact(kind, made, stages, tmp_path):
    images, queries = made
    stage = stages[kind]
    stage.save(tmp_path)
    again = load(kind, tmp_path, images)
    effort = stage.efforts[-1]
    candidates = again.candidates(queries, 10, effort)
    assert (candidates == stage.candidates(queries, 10, effort)).all()
    found = ranked(candidates, queries, images, 10)
    overlap = [
        len({*rows} & {*by_sorting(query, images, 10)}) for (rows, _), query in zip(found, queries[:20], strict=False)
    ]
    assert np.mean(overlap) / 10 >= 0.99, kind  # IVF-PQ keeps a shortlist of 200 of 1,200; measured 1.0 for all
    for (rows, scores), query in zip(found, queries, strict=True):
        assert np.allclose(scores, [images[row] @ query for row in rows])
        assert (np.diff(scores) <= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_tuning_takes_the_least_effort_that_is_enough(kind, made, stages):
    images, queries = made
    stage = stages[kind]
    effort, found = tune(stage, queries, images, 0.9)
    half = queries[::2]
    threshold = tenth_scores(half, images)
    reached = [e for e in stage.efforts if share_found(stage, half, images, threshold, e) >= 0.9]
    assert effort == reached[0]
    assert found is not None
    assert found == measure(stage, queries[1::2], images, effort).model_copy(
        update={"milliseconds": found.milliseconds, "exact_milliseconds": found.exact_milliseconds}
    )
    assert found.queries == 45
    assert found.found >= 0.8
    assert found.unrefined <= found.found


def test_share_found_by_hand():
    """Four images; of a query's best two, a first stage that proposes images 0 and 3 finds one."""

    class Fixed:
        efforts, default = (0,), 0

        def candidates(self, query_QE, k, effort):
            return np.array([[0, 3, -1]])

        def save(self, folder):
            raise AssertionError

    images = np.eye(12, dtype=np.float32)
    query = np.linspace(1, 0.1, 12, dtype=np.float32)[None]
    threshold = tenth_scores(query, images)
    assert threshold == query[0, 9]
    assert share_found(Fixed(), query, images, threshold, 0) == 0.2
    assert share_found(Exact(images), query, images, threshold, 0) == 1.0


def test_too_few_queries_measure_nothing(made, stages):
    images, queries = made
    assert tune(stages["hnsw"], queries[:19], images, 0.9) == (128, None)


def test_equal_scores_come_by_place():
    images = np.ones((5, 4), np.float32) / 2
    [(rows, scores)] = ranked(Exact(images).candidates(images[:1], 3, 0), images[:1], images, 3)
    assert rows.tolist() == [0, 1, 2]
    assert scores.tolist() == [1, 1, 1]


def test_a_small_gallery_is_refused_by_ivfpq(made):
    pytest.importorskip("faiss")
    with pytest.raises(UserError, match=r"`--kind` \(=ivfpq\) needs at least 1,000 pictures, not 100"):
        build("ivfpq", made[0][:100], 0)
