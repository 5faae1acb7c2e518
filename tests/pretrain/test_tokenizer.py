"""Tokenizers of the three kinds: words of their vocabulary, framed and padded by their own special tokens."""

import numpy as np
import pytest
import sentencepiece
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors, trainers

from pretrain.data.tokenizer import Tokenizer
from shards.errors import UserError

TEXTS = ["a red star above a blue circle", "two green squares", "the large yellow star is left of a circle"] * 20


def bpe(path, specials, pair):
    """A byte-pair vocabulary with the special tokens of RoBERTa or CLIP."""
    backend = Backend(models.BPE(unk_token=None))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    given = {"special_tokens": specials, "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False, **given)
    backend.train_from_iterator(TEXTS, trainer)
    first, last = pair
    ids = [backend.token_to_id(name) for name in (last, first)]
    backend.post_processor = processors.RobertaProcessing((last, ids[0]), (first, ids[1]))
    backend.save(str(path))
    return path


@pytest.fixture
def roberta(tmp_path):
    return Tokenizer(bpe(tmp_path / "roberta.json", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], ("<s>", "</s>")))


@pytest.fixture
def clip(tmp_path):
    names = ("<|startoftext|>", "<|endoftext|>")
    return Tokenizer(bpe(tmp_path / "clip.json", list(names), names))


@pytest.fixture
def spm(tmp_path):
    """A unigram model that the sentencepiece library trained, and that library reading it."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=str(tmp_path / "spm"), vocab_size=31, minloglevel=2
    )
    return tmp_path / "spm.model", sentencepiece.SentencePieceProcessor(str(tmp_path / "spm.model"))


def test_byte_pairs_with_robertas_frame(roberta):
    text = roberta.encode("a red star", 16)
    assert (text.ids_L[0], text.ids_L[-1], roberta.pad_id, roberta.mask_id) == (0, 2, 1, 4)
    assert roberta.special(text.ids_L).tolist() == [True, *[False] * (len(text.ids_L) - 2), True]
    assert text.segments_L.sum() == 0


def test_clips_end_is_also_its_padding_and_stays_visible(clip):
    ids_BL, mask_BL = clip.batch(["a red star above a blue circle", "a star"], 16)
    lengths = mask_BL.sum(1).tolist()
    assert lengths[0] == ids_BL.shape[1] > lengths[1]
    assert ids_BL[1, lengths[1] - 1 :].tolist() == [clip.last_id] * (ids_BL.shape[1] - lengths[1] + 1)
    assert clip.pad_id == clip.last_id
    with pytest.raises(UserError, match=r"has no \[MASK\] or <mask> token"):
        _ = clip.mask_id


def test_a_sentencepiece_model_gives_the_pieces_of_its_library(spm, tmp_path):
    path, library = spm
    tokenizer = Tokenizer(path)
    for text in ("a red star", "two  blue circles left of a star", "Ünknown"):
        ids = tokenizer.encode(text, 40).ids_L.tolist()
        assert ids[1:-1] == library.encode(text)
        assert (ids[0], ids[-1]) == (library.bos_id(), library.eos_id())
    assert len({tokenizer.first_id, tokenizer.last_id, tokenizer.pad_id, tokenizer.mask_id}) == 4
    assert len(tokenizer) == library.vocab_size() + 2  # padding and mask, which it did not have
    (tmp_path / "saved").mkdir()
    tokenizer.save(tmp_path / "saved")
    again = Tokenizer(tmp_path / "saved")
    assert np.array_equal(again.encode("a red star", 40).ids_L, tokenizer.encode("a red star", 40).ids_L)


def test_a_second_segment_is_marked_and_shortened(roberta, corpus):
    for tokenizer in (roberta, Tokenizer(corpus.tokenizer)):
        ids_L, segments_L = tokenizer.encode("a red star", 40, "blue circle")
        assert (segments_L[1:] >= segments_L[:-1]).all()
        second = [i for i in ids_L[segments_L == 1].tolist() if i != tokenizer.last_id]
        alone = tokenizer.encode("blue circle", 40).ids_L.tolist()[1:-1]
        assert second == alone
        short = tokenizer.encode("a red star", 8, "blue circle blue circle blue circle")
        assert len(short.ids_L) == 8
        assert short.segments_L.any()


def test_what_is_no_sentencepiece_model_is_refused(tmp_path):
    (tmp_path / "bad.model").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"bad\.model\) is not a sentencepiece model: "):
        Tokenizer(tmp_path / "bad.model")


def test_a_vocabulary_without_a_frame_is_refused(tmp_path):
    Backend(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"has no \[CLS\] or <s> or <\|startoftext\|> token"):
        Tokenizer(tmp_path)
