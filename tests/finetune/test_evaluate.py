"""Evaluation of a small real model: fast scoring against an obvious loop, and everything that a results file says."""

from typing import get_args

import numpy as np
import pytest
import torch

from finetune import evaluate as evaluation
from finetune.evaluate import Options, check_rerank, choose_every_pair, choose_folds, choose_rerank
from finetune.examples import thumbnails
from finetune.facts import STREAMS, Labels
from finetune.ranking import Side, rank
from finetune.recall import Recall
from finetune.results import Results
from finetune.retrieval import RetrievalSet
from finetune.score import Batching, Scorer, Similarity
from pretrain.data.images import evaluation_images
from pretrain.models.config import Trunk
from pretrain.models.interface import TextInput
from shards.errors import UserError
from tests.finetune.corpus import Corpus, checkpoint
from tests.pretrain.tiny import tiny_config

LABELS = Labels(name="tiny", data="corpus", dataset="corpus", pretraining_data="", command="finetune evaluate")


def evaluate(*arguments):
    return evaluation.evaluate(*arguments).results


ROUNDING = 2e-5  # measured 2e-6 between batch sizes, on log-odds of about 1


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def data():
    return RetrievalSet.from_source(Corpus(18))


@torch.inference_mode()
def slow_scores(checkpoint, data):
    """Every pair encoded again, one at a time: cosine and log-odds, each [I, T]."""
    cosine, logit = (np.empty((len(data.keys), len(data.texts)), np.float32) for _ in range(2))
    model, head = checkpoint.task.model, checkpoint.task.objectives["itm"]
    for i in range(len(data.keys)):
        image = model.encode_image(evaluation_images([data.source[i]], checkpoint.config))
        for t, text in enumerate(data.texts):
            tokens = checkpoint.tokenizer.batch([text], checkpoint.config.data.max_tokens)
            encoded = model.encode_text(TextInput(*tokens))
            cosine[i, t] = (image.embedding_BE @ encoded.embedding_BE.T).item()
            logit[i, t] = head.score(model.fuse(encoded, model.remember(image))).item()
    return cosine, logit


@pytest.fixture(scope="module")
def slow(tiny, data):
    return slow_scores(tiny, data)


@pytest.mark.parametrize(
    "batching", [Batching(), Batching(images=1, texts=1, pairs=1), Batching(images=7, texts=11, pairs=13)]
)
def test_scores_against_encoding_every_pair_again(tiny, data, slow, batching):
    scorer = Scorer(tiny, data, batching=batching)
    cosine = scorer.similarity().by_image_IT
    image, text = (index.ravel() for index in np.indices(cosine.shape))
    order = np.random.default_rng(0).permutation(len(image))[:2000]
    logit = scorer.matching(image[order], text[order])
    assert cosine.dtype == logit.dtype == np.float32
    np.testing.assert_allclose(cosine, slow[0], atol=ROUNDING)
    np.testing.assert_allclose(logit, slow[1][image[order], text[order]], atol=ROUNDING)
    assert slow[1].std() > 100 * ROUNDING, "scores that hardly differ would prove nothing"


def test_the_same_text_has_the_same_score_to_the_last_bit(tiny, data):
    scorer = Scorer(tiny, data, batching=Batching(texts=3, pairs=5))
    shared = [place for place, text in enumerate(data.texts) if text == "the sky over the sky"]
    cosine = scorer.similarity().by_text_IT[:, shared]
    assert len(shared) == 4
    assert (cosine == cosine[:, :1]).all()
    image, text = (index.ravel() for index in np.meshgrid(np.arange(len(data.keys)), shared, indexing="ij"))
    logit = scorer.matching(image, text).reshape(-1, len(shared))
    assert (logit == logit[:, :1]).all()


@pytest.mark.parametrize("score", ["itm", "itm+itc"])
def test_reranking_against_sorting_the_slow_scores(tiny, data, slow, score):
    k = 10
    fold = data.folds(1)[0]
    scorer = Scorer(tiny, data)
    ranked = rank(scorer, scorer.similarity(), [Side(fold, True), Side(fold, False)], k, score)
    cosine, logit = slow
    second = logit + cosine if score == "itm+itc" else logit
    for way, first, final in ((ranked[0], cosine, second), (ranked[1], cosine.T, second.T)):
        for query, row in enumerate(first):
            candidates = way.stage.candidates_Qk[query]
            assert row[candidates].min() >= np.sort(row)[-k] - ROUNDING
            rest = np.setdiff1d(np.arange(len(row)), candidates)
            order = [
                *sorted(candidates, key=lambda item: -final[query, item]),
                *sorted(rest, key=lambda item: -row[item]),
            ]
            right = {
                item
                for item in range(len(row))
                if data.image_T[item if way.side.by_image else query] == (query if way.side.by_image else item)
            }
            place = 1 + next(at for at, item in enumerate(order) if item in right)
            assert way.ranks.optimistic[query] <= place <= way.ranks.pessimistic[query]


def test_every_pair_is_the_whole_matrix_of_the_head(tiny, data, slow):
    log_odds, logit = Scorer(tiny, data).every_pair(data.folds(1))
    np.testing.assert_allclose(log_odds, slow[1], atol=ROUNDING)
    image, text = (index.ravel() for index in np.indices(logit.shape))
    np.testing.assert_allclose(logit.ravel(), Scorer(tiny, data).logits(image, text), atol=ROUNDING)
    assert not np.allclose(log_odds, logit), "two heads"
    results = evaluate(tiny, data, LABELS, Options(every_pair=True))
    assert (results.protocol.rerank, results.protocol.score) == (0, "itm")
    best = [row.argmax() for row in slow[1]]
    hits = 100 * np.mean([data.image_T[text] == image for image, text in enumerate(best)])
    assert results.i2t.optimistic.r1 == pytest.approx(hits)


@pytest.fixture
def counted(monkeypatch):
    """Every pair that goes through the matching head, an image and a text, as often as it does."""
    pairs = []
    score_block = Scorer._match_block

    def counting(self, image_P, text_P, heads, advance):
        pairs.extend(zip(image_P.tolist(), text_P.tolist(), strict=True))
        return score_block(self, image_P, text_P, heads, advance)

    monkeypatch.setattr(Scorer, "_match_block", counting)
    return pairs


@pytest.mark.parametrize("batching", [Batching(), Batching(images=4, texts=5, pairs=7)])
def test_folds_score_their_own_pairs_alone(tiny, data, slow, counted, batching):
    options = Options(every_pair=True, folds=3, batching=batching)
    measured = evaluation.evaluate(tiny, data, LABELS, options)
    folds = data.folds(3)
    distinct = Scorer(tiny, data).distinct_T
    expected = {
        (image, int(distinct[text]))
        for fold in folds
        for image in range(fold.images.start, fold.images.stop)
        for text in range(fold.texts.start, fold.texts.stop)
    }
    assert len(counted) == len(set(counted)), "once each"
    assert set(counted) == expected
    assert len(counted) < 0.4 * len(data.keys) * len(data.texts)
    figures = measured.results
    for way, sides in ((figures.i2t, True), (figures.t2i, False)):
        sides = [Side(fold, by_image=sides) for fold in folds]
        ranked = rank(Scorer(tiny, data), Similarity.both(slow[1]), sides, 0, "itm")
        recalls = [Recall.of(part.ranks.pessimistic) for part in ranked]
        assert way.pessimistic == Recall.mean_of(recalls)


def test_an_evaluator_of_every_pair_still_gets_them(tiny, data, counted):
    whole = evaluate(tiny, data, LABELS, Options(every_pair=True, folds=3, compat=("uniter",)))
    assert len(counted) == len(data.keys) * len(set(data.texts))
    alone = evaluate(tiny, data, LABELS, Options(every_pair=True, compat=("uniter",)))
    assert whole.compatibility == alone.compatibility
    folds = evaluate(tiny, data, LABELS, Options(every_pair=True, folds=3))
    assert (whole.i2t, whole.t2i, whole.rsum) == (folds.i2t, folds.t2i, folds.rsum)
    assert whole.analysis.histogram.right == pytest.approx(folds.analysis.histogram.right)
    assert whole.analysis.histogram.edges == pytest.approx(folds.analysis.histogram.edges, abs=ROUNDING)


SINGLE = {
    "objectives": {"itm": {"negatives": "swap"}, "mlm": {}},
    "model": {**tiny_config().model.model_dump(), "embedding_dim": None, "fusion": {"trunk": "joint", "heads": 2}},
}


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """A single-stream model: no towers, no shared space."""
    return checkpoint(tmp_path_factory.mktemp("single"), **SINGLE)


def test_a_model_without_a_shared_space_matches_every_pair(single, data):
    assert choose_every_pair(False, single)
    assert choose_rerank(None, single, True) == 0
    results = evaluate(single, data, LABELS, Options(every_pair=True, compat=("uniter",)))
    assert (results.stream, results.protocol.score) == ("single", "itm")
    scores, _ = Scorer(single, data).every_pair(data.folds(1))
    expected = 100 * np.mean([data.image_T[row.argmax()] == image for image, row in enumerate(scores)])
    assert results.i2t.optimistic.r1 == pytest.approx(expected)
    with pytest.raises(UserError, match=r"`--rerank` \(=16\) must be 0 where every pair is matched"):
        choose_rerank(16, single, True)


def test_every_trunk_has_a_stream():
    assert STREAMS.keys() == set(get_args(Trunk))


def test_results_say_what_was_done(tiny, data):
    results = evaluate(tiny, data, LABELS, Options(rerank=12))
    assert Results.model_validate_json(results.model_dump_json()) == results
    assert (results.i2t.queries, results.t2i.queries) == (18, len(data.texts))
    assert results.protocol.model_dump() == {
        "captions": "all",
        "ties": "pessimistic",
        "rerank": 12,
        "score": "itm",
        "folds": 1,
    }
    assert results.checkpoint.model_dump() == {
        "digest": "ab" * 32,
        "run": "tiny-run",
        "name": "step-00000007",
        "step": 7,
    }
    assert results.rsum.pessimistic == pytest.approx(results.i2t.pessimistic.sum + results.t2i.pessimistic.sum)
    assert results.rsum.pessimistic <= results.rsum.optimistic
    assert results.rsum.intervals.rsum[0] <= results.rsum.pessimistic <= results.rsum.intervals.rsum[1]
    for way in (results.i2t, results.t2i):
        assert way.first_stage is not None
        assert way.pessimistic.r10 <= way.first_stage.ceiling <= 100
    assert results.i2t.tied >= 2 / 18, "images 1 and 2 have the same only caption: neither can claim it"
    assert evaluate(tiny, data, LABELS, Options(rerank=12)).i2t == results.i2t


def test_examples_show_the_first_five_and_the_worst(tiny, data):
    results = evaluate(tiny, data, LABELS, Options())
    for examples in (results.examples_i2t, results.examples_t2i):
        assert (len(examples.sample), len(examples.worst)) == (8, 12)
        assert [e.rank for e in examples.worst] == sorted((e.rank for e in examples.worst), reverse=True)
        for example in examples.sample:
            scores = [item.score for item in example.found]
            assert len(scores) == 5
            assert scores == sorted(scores, reverse=True)
            assert [item.right for item in example.found] == [item.key == example.key for item in example.found]
            if example.rank <= 5:
                assert any(item.right for item in example.found)
    shown = thumbnails(data, [results.examples_i2t, results.examples_t2i])
    assert {example.key for example in results.examples_t2i.worst} <= shown.keys()
    assert all(uri.startswith("data:image/jpeg;base64,") for uri in shown.values())


def test_folds_are_means_over_smaller_galleries(tiny, data):
    results = evaluate(tiny, data, LABELS, Options(folds=3))
    scorer = Scorer(tiny, data)
    parts = [rank(scorer, scorer.similarity(), [Side(fold, True)], 0, "itm")[0] for fold in data.folds(3)]
    expected = [Recall.of(part.ranks.pessimistic) for part in parts]
    assert results.i2t.pessimistic == Recall.mean_of(expected)
    assert results.i2t.deviation is not None
    assert results.i2t.deviation.r10 == pytest.approx(np.std([recall.r10 for recall in expected], ddof=1))
    with pytest.raises(UserError, match=r"`folds` \(=4\) must divide the number of images \(=18\)"):
        data.folds(4)


def test_caption_policy_first5():
    corpus = Corpus(18)
    assert max(len(sample.captions) for sample in corpus.samples) > 5
    first5 = RetrievalSet.from_source(corpus, "first5")
    assert first5.texts == [text for sample in corpus.samples for text in sample.captions[:5]]
    assert first5.image_T.tolist() == [i for i, s in enumerate(corpus.samples) for _ in s.captions[:5]]


def test_k_is_decided_by_the_checkpoint_and_refused_below_ten(tiny, tmp_path):
    dual = checkpoint(
        tmp_path, objectives={"itc": {}}, model={**tiny.config.model.model_dump(), "fusion": {"trunk": "none"}}
    )
    assert choose_rerank(None, tiny) == 32
    assert choose_rerank(None, dual) == choose_rerank(0, tiny) == 0
    assert choose_rerank(10, tiny) == 10
    with pytest.raises(UserError, match=r"`--rerank` \(=9\) must be 0 \(off\) or at least 10"):
        check_rerank(9)
    with pytest.raises(UserError, match=r"`--rerank` \(=16\) needs a checkpoint with a matching head"):
        choose_rerank(16, dual)


def test_a_published_name_needs_the_published_size():
    assert [choose_folds(*task) for task in (("coco_5k", 5000), ("coco_1k", 5000), ("flickr30k", 1000), ("x", 3))] == [
        1,
        5,
        1,
        1,
    ]
    with pytest.raises(UserError, match=r"`--dataset` \(=coco_5k\) must have 5000 images; the data has 18"):
        choose_folds("coco_5k", 18)


def test_nothing_to_retrieve():
    with pytest.raises(UserError, match="holds no images"):
        RetrievalSet.from_source(Corpus(0))
