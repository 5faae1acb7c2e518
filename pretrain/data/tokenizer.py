"""Texts to token ids by a `tokenizer.json` (the `tokenizers` library), whatever trained it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Encoding
from tokenizers import Tokenizer as Backend
from torch import Tensor

from pretrain.places import locate
from shards.errors import UserError

FILE = "tokenizer.json"


class Tokenizer:
    """Encodes texts as [CLS] ... [SEP], truncated to a length, padded with [PAD].

    Args:
        place: A tokenizer.json, or a folder (or `package:NAME/FOLDER`) that holds one.
    """

    def __init__(self, place: str | Path) -> None:
        path = locate("data.tokenizer", str(place))
        self._path = path / FILE if path.is_dir() else path
        try:
            self._backend = Backend.from_file(str(self._path))
        except Exception as error:  # the library raises plain Exception
            raise UserError(f"`data.tokenizer` (={self._path}) is not a tokenizer.json: {error}") from None
        self._backend.no_padding()
        self.pad_id, self.mask_id = self._special("[PAD]"), self._special("[MASK]")
        self._special_ids = np.array([self._special(t) for t in ("[PAD]", "[CLS]", "[SEP]", "[MASK]")])

    def __len__(self) -> int:
        return self._backend.get_vocab_size()

    def encode(self, text: str, max_tokens: int) -> np.ndarray:
        """int64 [L], L <= `max_tokens`, [CLS] and [SEP] included."""
        return np.array(self._encoding(text, max_tokens).ids, dtype=np.int64)

    def words(self, text: str, max_tokens: int) -> list[tuple[str, list[int]]]:
        """The words of a text as it spells them, each with the places of its tokens in `encode`."""
        encoding = self._encoding(text, max_tokens)
        places: dict[int, list[int]] = {}
        for place, word in enumerate(encoding.word_ids):
            if word is not None:
                places.setdefault(word, []).append(place)
        spans = [(encoding.offsets[own[0]][0], encoding.offsets[own[-1]][1], own) for own in places.values()]
        return [(text[start:stop].strip(), own) for start, stop, own in spans]

    def special(self, token_ids_L: np.ndarray) -> np.ndarray:
        """bool [L], True at [PAD], [CLS], [SEP] and [MASK]."""
        return np.isin(token_ids_L, self._special_ids)

    def pad(self, rows: Sequence[np.ndarray], value: int | None = None) -> Tensor:
        """Stacks texts to int64 [B, L], L the longest, filled with [PAD] or `value`."""
        fill = self.pad_id if value is None else value
        padded = np.full((len(rows), max(map(len, rows))), fill, dtype=np.int64)
        for target, row in zip(padded, rows, strict=True):
            target[: len(row)] = row
        return torch.from_numpy(padded)

    def batch(self, texts: Sequence[str], max_tokens: int) -> tuple[Tensor, Tensor]:
        """Token ids int64 [B, L] and mask bool [B, L]."""
        ids_BL = self.pad([self.encode(text, max_tokens) for text in texts])
        return ids_BL, ids_BL != self.pad_id

    def save(self, folder: Path) -> None:
        """Writes the tokenizer.json as it was read."""
        (folder / FILE).write_bytes(self._path.read_bytes())

    def _encoding(self, text: str, max_tokens: int) -> Encoding:
        if not self._backend.truncation or self._backend.truncation["max_length"] != max_tokens:
            self._backend.enable_truncation(max_tokens)
        return self._backend.encode(text)

    def _special(self, token: str) -> int:
        found = self._backend.token_to_id(token)
        if found is None:
            raise UserError(f"`data.tokenizer` (={self._path}) has no {token} token")
        return found
