"""Trains a tokenizer on the captions of a shard set; equal captions in any order give equal files.

wordpiece       a tokenizer.json: lower case, BERT's special tokens and template
sentencepiece   a .model: unigram pieces (Kudo, 2018) of NFKC text in lower case, with <s>, </s>, <pad> and <mask>
"""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from shards.errors import UserError
from shards.reader import ShardSet
from shards.storage import write_atomically

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Kind = Literal["wordpiece", "sentencepiece"]
SUFFIXES = {"wordpiece": ".json", "sentencepiece": ".model"}
"""What a file of each kind must be called, since readers tell them apart by it."""

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
"""Ids 0 to 4, in this order."""


def train_tokenizer(captions: Iterable[str], vocab_size: int = 30000) -> "Tokenizer":
    """Trains on `captions`, whose order does not matter: equal texts give equal tokenizers.

    Raises:
        UserError: a vocabulary too small for the special tokens and the characters of the captions.
    """
    from tokenizers import trainers

    tokenizer = _assembled({})
    words = sorted(_words(tokenizer, captions))
    characters = sorted({character for word in words for character in word})
    # The trainer numbers `##x` in the order of a randomly seeded hash map, and ties between merges follow the numbers.
    # Given as special tokens they keep this order; the tokenizer built from the result does not treat them as special.
    alphabet = SPECIALS + characters + [f"##{character}" for character in characters]
    if vocab_size < len(alphabet):
        raise UserError(f"`vocab_size` (={vocab_size}) must be at least {len(alphabet)}, to hold every character")
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=alphabet, show_progress=False)
    tokenizer.train_from_iterator(words, trainer)
    return _assembled(tokenizer.get_vocab())


def _assembled(vocabulary: dict[str, int]) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    if vocabulary:
        tokenizer.add_special_tokens(SPECIALS)
        tokenizer.post_processor = processors.BertProcessing(
            ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
        )
    return tokenizer


def _words(tokenizer: "Tokenizer", captions: Iterable[str]) -> Iterator[str]:
    for caption in captions:
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(caption)):
            yield word


def train_sentencepiece(captions: Iterable[str], vocab_size: int = 30000) -> bytes:
    """The content of a .model. Small corpora give fewer pieces than `vocab_size`.

    Raises:
        UserError: no captions, or a vocabulary too small for the characters of the captions.
    """
    import sentencepiece

    content = io.BytesIO()
    texts = sorted(set(captions))
    if not texts:
        raise UserError("a tokenizer needs at least one caption")
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=content,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="nmt_nfkc_cf",
            num_threads=1,
            pad_id=3,
            control_symbols=["<mask>"],
            minloglevel=3,
        )
    except RuntimeError as error:
        raise UserError(f"`vocab_size` (={vocab_size}) cannot be trained: {' '.join(str(error).split())}") from None
    return content.getvalue()


def write_tokenizer(shards: Path, out: Path, vocab_size: int = 30000, kind: Kind = "wordpiece") -> int:
    """Trains on a shard set and writes `out`. Returns the number of tokens.

    Raises:
        UserError: an unknown kind, a file name of the other, a folder that is not there, too small a vocabulary.
    """
    if kind not in SUFFIXES:
        raise UserError(f"`kind` (={kind}) must be one of {', '.join(SUFFIXES)}")
    if out.suffix != SUFFIXES[kind]:
        raise UserError(f"`out` (={out}) must end in {SUFFIXES[kind]}, as `kind` (={kind}) has it")
    if not out.parent.is_dir():
        raise UserError(f"`out` (={out}) must lie in a folder that exists")
    captions = _captions(ShardSet(shards))
    if kind == "sentencepiece":
        content = train_sentencepiece(captions, vocab_size)
        write_atomically(out, content)
        return _pieces(content)
    tokenizer = train_tokenizer(captions, vocab_size)
    write_atomically(out, tokenizer.to_str(pretty=True).encode())
    return tokenizer.get_vocab_size()


def _pieces(model: bytes) -> int:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=model).vocab_size()


def _captions(shards: ShardSet) -> Iterator[str]:
    for index in range(len(shards)):
        yield from shards[index].captions
