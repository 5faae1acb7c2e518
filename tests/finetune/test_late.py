"""Evaluation of models whose contrast compares tokens (FILIP, BLIP-2): against single pairs, each way by its own."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from finetune.evaluate import Options, evaluate
from finetune.facts import Labels
from finetune.retrieval import RetrievalSet
from finetune.score import Batching, Scorer
from finetune.search.encoder import Encoder
from pretrain.data.images import evaluation_images
from pretrain.models.interface import TextInput
from shards.errors import UserError
from tests.finetune.corpus import Corpus, checkpoint

LABELS = Labels("late", "corpus", "corpus", "", "finetune evaluate")


@pytest.fixture(scope="module", params=["tokens", "queries"])
def late(request, tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("late"), objectives={"itc": {"similarity": request.param}})


@torch.inference_mode()
def slow(checkpoint, data):
    """By loops over images, texts and tokens: as images see texts, and as texts see images."""
    found = np.empty((2, len(data.keys), len(data.texts)), np.float32)
    model, kind = checkpoint.task.model, checkpoint.config.objectives.itc.similarity
    for i in range(len(data.keys)):
        image = model.encode_image(evaluation_images([data.source[i]], checkpoint.config))
        parts = F.normalize(model.image_projection(image.tokens_BTD[0]), dim=-1)
        for t, text in enumerate(data.texts):
            encoded = model.encode_text(TextInput(*checkpoint.tokenizer.batch([text], 16)))
            words = F.normalize(model.text_projection(encoded.tokens_BTD[0]), dim=-1)
            if kind == "queries":
                found[:, i, t] = max(float(part @ encoded.embedding_BE[0]) for part in parts)
            else:
                found[0, i, t] = np.mean([max(float(part @ word) for word in words) for part in parts])
                found[1, i, t] = np.mean([max(float(part @ word) for part in parts) for word in words])
    return found


@pytest.mark.parametrize("batching", [Batching(), Batching(images=3, texts=5)])
def test_similarity_is_what_the_contrast_compares(late, batching):
    data = RetrievalSet.from_source(Corpus(6))
    found, expected = Scorer(late, data, batching=batching).similarity(), slow(late, data)
    np.testing.assert_allclose(found.by_image_IT, expected[0], atol=2e-6)
    np.testing.assert_allclose(found.by_text_IT, expected[1], atol=2e-6)


def test_each_direction_ranks_by_its_own(late):
    data = RetrievalSet.from_source(Corpus(12))
    measured = evaluate(late, data, LABELS, Options()).results
    by_image, by_text = slow(late, data)
    best_T, best_I = by_text.argmax(0), by_image.argmax(1)
    assert measured.t2i.optimistic.r1 == pytest.approx(100 * np.mean(best_T == data.image_T))
    assert measured.i2t.optimistic.r1 == pytest.approx(100 * np.mean(data.image_T[best_I] == np.arange(12)))


def test_what_needs_one_vector_is_refused(late):
    data = RetrievalSet.from_source(Corpus(12))
    with pytest.raises(UserError, match="`--compat`"):
        evaluate(late, data, LABELS, Options(compat=("open_clip",)))
    with pytest.raises(UserError, match="search and scores compare one vector"):
        Encoder(late)
