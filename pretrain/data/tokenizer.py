"""Texts to token ids by a `tokenizer.json` (the `tokenizers` library) or a sentencepiece model."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import Encoding, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from torch import Tensor

from pretrain.data.words import Marks, marks_of, word_numbers
from pretrain.places import locate
from shards.errors import UserError

FILE = "tokenizer.json"
NAMES = {
    "first": ("[CLS]", "<s>", "<|startoftext|>"),
    "last": ("[SEP]", "</s>", "<|endoftext|>"),
    "pad": ("[PAD]", "<pad>", "<|endoftext|>"),
    "mask": ("[MASK]", "<mask>"),
}
"""What the special tokens are called in BERT's, RoBERTa's and sentencepiece's, and CLIP's vocabularies."""


class Text(NamedTuple):
    """One text: token ids, int64 [L], and for each 0, or 1 from the second segment on, int64 [L]."""

    ids_L: np.ndarray
    segments_L: np.ndarray


class Tokenizer:
    """Encodes texts between a first and a last token, truncated to a length, padded.

    Args:
        place: A tokenizer.json, a sentencepiece .model, or a folder (or `package:NAME/FOLDER`, or a
            fetched `hf:USER/NAME`) that holds the first.

    Raises:
        UserError: nothing readable there, or a vocabulary without special tokens of a known name (`NAMES`).
    """

    def __init__(self, place: str | Path) -> None:
        path = locate("data.tokenizer", str(place))
        self._path = path / FILE if path.is_dir() else path
        self._backend = _open(self._path)
        self._backend.no_padding()
        self.first_id, self.last_id, self.pad_id = (self._special(role) for role in ("first", "last", "pad"))
        known = [self._backend.token_to_id(name) for names in NAMES.values() for name in names]
        self._special_ids = np.array([number for number in known if number is not None])

    def __len__(self) -> int:
        return self._backend.get_vocab_size()

    @property
    def mask_id(self) -> int:
        """What hides a word.

        Raises:
            UserError: the vocabulary has no such token (CLIP's).
        """
        return self._special("mask")

    @property
    def pad_token(self) -> str:
        """What fills short texts, as the vocabulary spells it."""
        return self._backend.id_to_token(self.pad_id) or ""

    def for_transformers(self, max_tokens: int) -> dict[str, Any]:
        """The tokenizer_config.json with which `AutoTokenizer` gives the ids that this gives."""
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": max_tokens,
            "pad_token": self.pad_token,
            "clean_up_tokenization_spaces": False,
        }

    def encode(self, text: str, max_tokens: int, second: str | None = None) -> Text:
        """L <= `max_tokens` tokens, the first and last included; of two segments the longer is cut first."""
        encoding = self._encoding(text, max_tokens, second)
        from_second_L = np.array([number == 1 for number in encoding.sequence_ids])
        return Text(np.array(encoding.ids, dtype=np.int64), np.maximum.accumulate(from_second_L).astype(np.int64))

    def special(self, token_ids_L: np.ndarray) -> np.ndarray:
        """bool [L], True at the tokens that stand for no word."""
        return np.isin(token_ids_L, self._special_ids)

    def words(self, token_ids_L: np.ndarray) -> np.ndarray:
        """int64 [L], the number of each token's word; -1 for special tokens."""
        tokens = [self._backend.id_to_token(number) or "" for number in token_ids_L.tolist()]
        return word_numbers(tokens, self.special(token_ids_L), self._marks)

    def spelt(self, text: str, max_tokens: int) -> list[tuple[str, list[int]]]:
        """The words of a text as it spells them, each with the places of its tokens in `encode`."""
        encoding = self._encoding(text, max_tokens)
        places: dict[int, list[int]] = {}
        for place, word in enumerate(encoding.word_ids):
            if word is not None:
                places.setdefault(word, []).append(place)
        spans = [(encoding.offsets[own[0]][0], encoding.offsets[own[-1]][1], own) for own in places.values()]
        return [(text[start:stop].strip(), own) for start, stop, own in spans]

    @cached_property
    def _marks(self) -> Marks:
        return marks_of(self._backend.get_vocab())

    def pad(self, rows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Stacks texts to int64 [B, L], L the longest, and bool [B, L], True where there is a token."""
        lengths_B = np.array([len(row) for row in rows])
        mask_BL = np.arange(lengths_B.max()) < lengths_B[:, None]
        ids_BL = np.full(mask_BL.shape, self.pad_id, dtype=np.int64)
        ids_BL[mask_BL] = np.concatenate(rows)
        return torch.from_numpy(ids_BL), torch.from_numpy(mask_BL)

    def batch(self, texts: Sequence[str], max_tokens: int) -> tuple[Tensor, Tensor]:
        """Token ids int64 [B, L] and mask bool [B, L]."""
        return self.pad([self.encode(text, max_tokens).ids_L for text in texts])

    def save(self, folder: Path) -> None:
        """Writes the tokenizer.json, as it was read where it was one."""
        content = self._path.read_bytes() if self._path.suffix == ".json" else self._backend.to_str().encode()
        (folder / FILE).write_bytes(content)

    def _encoding(self, text: str, max_tokens: int, second: str | None = None) -> Encoding:
        if not self._backend.truncation or self._backend.truncation["max_length"] != max_tokens:
            self._backend.enable_truncation(max_tokens)
        return self._backend.encode(text, second)

    def _special(self, role: str) -> int:
        found = [self._backend.token_to_id(name) for name in NAMES[role]]
        known = [number for number in found if number is not None]
        if not known:
            names = " or ".join(NAMES[role])
            raise UserError(f"`data.tokenizer` (={self._path}) has no {names} token")
        return known[0]


def _open(path: Path) -> Backend:
    try:
        return _from_sentencepiece(path) if path.suffix == ".model" else Backend.from_file(str(path))
    except UserError:
        raise
    except Exception as error:  # the library raises plain Exception
        kind = "sentencepiece model" if path.suffix == ".model" else "tokenizer.json"
        raise UserError(f"`data.tokenizer` (={path}) is not a {kind}: {' '.join(str(error).split())}") from None


def _from_sentencepiece(path: Path) -> Backend:
    """The same unigram model and normalisation, framed as RoBERTa frames its texts."""
    spec = ModelProto()
    spec.ParseFromString(path.read_bytes())
    if spec.trainer_spec.model_type != spec.trainer_spec.UNIGRAM:
        raise UserError(f"`data.tokenizer` (={path}) must be a unigram model")
    vocabulary = [(piece.piece, piece.score) for piece in spec.pieces]
    backend = Backend(models.Unigram(vocabulary, spec.trainer_spec.unk_id, spec.trainer_spec.byte_fallback))
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    charsmap = spec.normalizer_spec.precompiled_charsmap
    known = [normalizers.Precompiled(charsmap)] if charsmap else []
    backend.normalizer = normalizers.Sequence([*known, spaces])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(["<s>", "</s>", "<pad>", "<mask>"])
    frame = [(name, backend.token_to_id(name)) for name in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=frame
    )
    return backend
