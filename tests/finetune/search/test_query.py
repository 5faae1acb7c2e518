"""Queries against obvious code: encode, multiply, sort; and the matching head pair by pair."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from finetune.search import query as module
from finetune.search.query import Query
from shards.errors import UserError
from tests.finetune.corpus import checkpoint


@torch.inference_mode()
def by_hand(searcher, text, picture=None):
    """Cosine of a query with every picture of the index, one picture at a time."""
    encoder, index = searcher.encoder, searcher.index
    query = torch.zeros(16)
    if text:
        query = query + encoder.texts([text]).embedding_BE[0]
    if picture:
        query = query + encoder.images([picture]).embedding_BE[0]
    query = query / query.norm()
    rows = [encoder.images([index.picture(row)]).embedding_BE[0] for row in range(index.facts.images)]
    return [float(query @ row) for row in rows]


@pytest.mark.parametrize("text", ["a red kite over the water", ""])
@pytest.mark.parametrize("with_picture", [False, True])
def test_first_stage(searcher, text, with_picture):
    picture = searcher.index.picture(7) if with_picture else None
    if not text and not with_picture:
        with pytest.raises(UserError, match="must have a text, a picture or both"):
            searcher.search([Query(text)])
        return
    answer = searcher.search([Query(text, picture, k=5)])[0]
    scores = by_hand(searcher, text, picture)
    order = np.argsort(-np.array(scores), kind="stable")[:5]
    assert [hit.row for hit in answer.hits] == order.tolist()
    assert np.allclose([hit.score for hit in answer.hits], np.array(scores)[order], atol=1e-5)
    assert answer.milliseconds.keys() == {"encode", "search"}
    if with_picture and not text:
        assert (answer.hits[0].row, round(answer.hits[0].score, 4)) == (7, 1.0)


@torch.inference_mode()
def test_rerank_is_the_matching_head_over_the_candidates(searcher):
    text = "two boat under the sky"
    first = searcher.search([Query(text, k=20)])[0].hits
    answer = searcher.search([Query(text, k=5, rerank=20)])[0]
    task, index = searcher.encoder.checkpoint.task, searcher.index

    def match(row):
        fused = task.model.fuse(
            searcher.encoder.texts([text]), task.model.remember(searcher.encoder.images([index.picture(row)]))
        )
        return float(task.objectives["itm"].score(fused))

    scores = {hit.row: match(hit.row) for hit in first}
    assert [hit.row for hit in answer.hits] == sorted(scores, key=lambda row: -scores[row])[:5]
    assert all(hit.match == pytest.approx(scores[hit.row], abs=1e-4) for hit in answer.hits)
    assert "rerank" in answer.milliseconds


def test_queries_together_are_as_alone(searcher):
    picture = searcher.index.picture(3)
    queries = [
        Query("a dog", k=3),
        Query("", picture, k=4),
        Query("the sky over the sky and a red red boat", k=2, rerank=30),
        Query("green", picture, k=40),
    ]
    together = searcher.search(queries)
    for query, answer in zip(queries, together, strict=True):
        alone = searcher.search([query])[0]
        assert [hit.row for hit in answer.hits] == [hit.row for hit in alone.hits]
        assert len(answer.hits) == query.k
        assert np.allclose([hit.score for hit in answer.hits], [hit.score for hit in alone.hits], atol=1e-5)


def test_encoded_pictures_are_kept_up_to_a_bound(searcher, monkeypatch):
    monkeypatch.setattr(module, "REMEMBERED", 4)
    first = searcher.encoded([5, 6, 7])
    searcher.encoded([7, 8, 9])
    assert sorted(searcher._encoded) == [6, 7, 8, 9] or sorted(searcher._encoded) == [5, 7, 8, 9]
    assert torch.allclose(searcher.encoded([5, 6, 7]).embedding_BE, first.embedding_BE, atol=1e-6)
    assert len(searcher.encoded(range(9)).embedding_BE) == 9
    assert len(searcher._encoded) == 4


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (Query("  "), "must have a text, a picture or both"),
        (Query("a", k=0), "`k` (=0) must be at least 1"),
        (Query("a", k=10, rerank=9), "`rerank` (=9) must be 0 (off) or at least `k` (=10)"),
    ],
)
def test_refused(searcher, query, message):
    with pytest.raises(UserError) as refused:
        searcher.search([Query("a dog"), query])
    assert message in str(refused.value)


def test_what_cannot_match_is_refused(searcher, tmp_path):
    picture = searcher.index.picture(0)
    with pytest.raises(UserError, match="must have a text"):
        searcher.search([Query("", picture, rerank=10)])
    dual = checkpoint(tmp_path, objectives={"itc": {}})
    searcher.encoder.checkpoint = replace(searcher.encoder.checkpoint, task=dual.task)
    with pytest.raises(UserError, match=r"needs a checkpoint with a matching head, `objectives\.itm`"):
        searcher.search([Query("a", rerank=10)])
