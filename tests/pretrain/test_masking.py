"""What masked language modelling hides: shares, whole words, spans, and which tokens are words."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers

from pretrain.data.masking import IGNORE, choose, mask_tokens
from pretrain.data.words import marks_of, word_numbers

UNITS = ["token", "word", "span"]


def test_masking_hides_in_three_ways():
    rng, n = np.random.default_rng(0), 100_000
    ids, chosen = np.full(n, 7), np.arange(n) % 2 == 0
    masked, labels = mask_tokens(ids, chosen, mask_id=4, vocabulary=1_000, rng=rng)
    assert (labels[chosen] == 7).all()
    assert (labels[~chosen] == IGNORE).all()
    assert (masked[~chosen] == 7).all()
    assert (masked[chosen] == 4).mean() == pytest.approx(0.8, abs=0.006)
    assert (masked[chosen] == 7).mean() == pytest.approx(0.1, abs=0.005)


@pytest.mark.parametrize("unit", UNITS)
def test_the_share_that_is_hidden_is_the_probability(unit):
    rng = np.random.default_rng(0)
    words = np.repeat(np.arange(50), 2)
    hidden = [choose(words, np.full(100, 0.15), unit, rng) for _ in range(400)]
    # Spans stop at their budget, which the second half of a word may exceed by one token.
    expected = 0.155 if unit == "span" else 0.15
    assert np.mean(hidden) == pytest.approx(expected, abs=0.007)


@given(
    lengths=st.lists(st.integers(1, 4), max_size=12),
    unit=st.sampled_from(UNITS),
    probability=st.floats(0.01, 0.9),
    seed=st.integers(0, 99),
)
def test_words_are_hidden_whole_and_special_tokens_never(lengths, unit, probability, seed):
    words = np.concatenate([[-1], np.repeat(np.arange(len(lengths)), lengths), [-1]]).astype(np.int64)
    hidden = choose(words, np.full(len(words), probability), unit, np.random.default_rng(seed))
    assert not hidden[words < 0].any()
    assert hidden.any() == bool(lengths)
    if unit != "token":
        assert all(len(set(hidden[words == word])) == 1 for word in range(len(lengths)))


def test_spans_are_longer_than_words():
    def gaps(unit: str) -> float:
        rng, total, runs = np.random.default_rng(0), 0, 0
        for _ in range(300):
            hidden = choose(np.arange(60), np.full(60, 0.15), unit, rng)
            total, runs = total + hidden.sum(), runs + (np.diff(hidden.astype(int), prepend=0) == 1).sum()
        return total / runs

    assert gaps("word") < 1.3
    assert gaps("span") > 2.5


@pytest.mark.parametrize("unit", UNITS)
def test_tokens_of_no_probability_stay(unit):
    words, probability = np.arange(20), np.where(np.arange(20) < 10, 0.0, 0.5)
    for seed in range(50):
        hidden = choose(words, probability, unit, np.random.default_rng(seed))
        assert hidden.any()
        assert not hidden[:10].any()
    assert not choose(words, np.zeros(20), unit, np.random.default_rng(0)).any()


def test_a_short_text_has_at_least_one_masked_token():
    for seed in range(50):
        assert choose(np.array([-1, 0, -1]), np.full(3, 0.15), "token", np.random.default_rng(seed)).tolist() == [
            False,
            True,
            False,
        ]


TEXT = "unbelievable stories of unbelievable dogs, told"
CORPUS = ["unbelievable stories of dogs, told by a believable story teller"] * 3


def trained(kind: str) -> Backend:
    if kind == "wordpiece":
        backend = Backend(models.WordPiece(unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]"], show_progress=False)
    elif kind == "clip":
        backend = Backend(models.BPE(unk_token="[UNK]", end_of_word_suffix="</w>"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.BpeTrainer(
            vocab_size=40, special_tokens=["[UNK]"], end_of_word_suffix="</w>", show_progress=False
        )
    elif kind == "byte-level":
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(vocab_size=60, show_progress=False)
    else:
        backend = Backend(models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=60, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
        )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


@pytest.mark.parametrize("kind", ["wordpiece", "clip", "byte-level", "sentencepiece"])
def test_words_are_told_from_the_tokens_of_every_vocabulary(kind):
    backend = trained(kind)
    tokens = backend.encode(TEXT).tokens
    numbers = word_numbers(tokens, np.zeros(len(tokens), bool), marks_of(backend.get_vocab()))
    signs = str.maketrans("", "", "Ġ▁")
    written = [""] * (numbers.max() + 1)
    for token, number in zip(tokens, numbers, strict=True):
        written[number] += token.translate(signs).removeprefix("##").removesuffix("</w>")
    together = kind in ("byte-level", "sentencepiece")  # these write the comma without a space, as part of the word
    assert written == (TEXT.split() if together else TEXT.replace(",", " ,").split())
    assert len(tokens) > len(written)


def test_a_special_token_ends_a_word():
    tokens, special = ["[CLS]", "a", "##b", "[SEP]", "##c", "d"], np.array([1, 0, 0, 1, 0, 0], bool)
    assert word_numbers(tokens, special, "continued").tolist() == [-1, 0, 0, -1, 1, 2]
    assert word_numbers(["</s>", "▁a", "b", "</s>", "c"], np.array([1, 0, 0, 1, 0], bool), "begun").tolist() == [
        -1,
        0,
        0,
        -1,
        1,
    ]
