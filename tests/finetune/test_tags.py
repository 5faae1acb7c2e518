"""Texts that are read with the tags of the image that they meet (OSCAR): scored by pair against an obvious loop."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from finetune.evaluate import matches
from finetune.retrieval import RetrievalSet
from finetune.score import Scorer
from pretrain.data.images import evaluation_images
from pretrain.models.interface import TextInput
from pretrain.objectives.pollution import Pollution
from tests.finetune.corpus import WORDS, Corpus, checkpoint


class Tagged(Corpus):
    """Each image with up to three tags."""

    def __getitem__(self, index):
        tags = tuple(WORDS[(index + place) % len(WORDS)] for place in range(index % 4))
        return replace(super().__getitem__(index), tags=tags)


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    """No shared space; the head tells own captions from polluted ones."""
    folder = tmp_path_factory.mktemp("tagged")
    data = {"max_tokens": 16, "global_batch": 8, "second": "tags"}
    return checkpoint(folder, objectives={"mlm": {}, "pollution": {"kind": "caption"}}, data=data)


@torch.inference_mode()
def slow(checkpoint, data):
    scores = np.empty((len(data.keys), len(data.texts)), np.float32)
    model, head = checkpoint.task.model, checkpoint.task.objectives["pollution"]
    for i in range(len(data.keys)):
        image = model.encode_image(evaluation_images([data.source[i]], checkpoint.config))
        for t, text in enumerate(data.texts):
            words = checkpoint.tokenizer.encode(text, 16, " ".join(data.source[i].tags))
            ids = torch.from_numpy(words.ids_L)[None]
            tokens = TextInput(ids, torch.ones_like(ids, dtype=torch.bool), torch.from_numpy(words.segments_L)[None])
            logits = head.head(model.fuse(model.encode_text(tokens), model.remember(image)).pooled_BD)[0]
            scores[i, t] = float(logits[0] - logits[1])
    return scores


def test_a_text_meets_each_image_with_its_tags(tagged):
    data = RetrievalSet.from_source(Tagged(7))
    log_odds, logit = Scorer(tagged, data).every_pair(data.folds(1))
    np.testing.assert_allclose(log_odds, slow(tagged, data), atol=2e-5)
    assert logit.shape == log_odds.shape
    image, text = np.nonzero(np.ones_like(log_odds))
    np.testing.assert_allclose(Scorer(tagged, data).matching(image, text), log_odds.ravel(), atol=2e-5)


def test_a_head_that_knows_polluted_captions_can_match(tagged, tmp_path):
    assert isinstance(tagged.task.matcher, Pollution)
    assert matches(tagged)
    data = {"max_tokens": 16, "global_batch": 8, "second": "tags"}
    of_tags = checkpoint(tmp_path, objectives={"mlm": {}, "pollution": {"kind": "second"}}, data=data)
    assert not matches(of_tags), "whether the tags are the image's own says nothing of the caption"
