"""Which tokens make up a word, told from how the vocabulary writes its tokens."""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

Marks = Literal["continued", "ended", "begun"]
BEGUN = ("Ġ", "▁")  # what byte-level BPE and sentencepiece write for the space before a word


def marks_of(vocabulary: Iterable[str]) -> Marks:
    """How tokens show where words end.

    Wordpieces that are `continued` carry ##, words of CLIP's BPE are `ended` by </w>, those of byte-level BPE and
    sentencepiece are `begun` by a sign for the space.
    """
    tokens = list(vocabulary)
    if any(token.endswith("</w>") for token in tokens):
        return "ended"
    return "begun" if any(token.startswith(BEGUN) for token in tokens) else "continued"


def word_numbers(tokens: Sequence[str], special_L: np.ndarray, marks: Marks) -> np.ndarray:
    """int64 [L], the number of each token's word from 0 on; -1 for special tokens, each of which ends a word."""
    numbers_L = np.full(len(tokens), -1, dtype=np.int64)
    word, fresh = -1, True
    for place, token in enumerate(tokens):
        if special_L[place]:
            fresh = True
            continue
        word += fresh or _begins(token, marks)
        numbers_L[place] = word
        fresh = marks == "ended" and token.endswith("</w>")
    return numbers_L


def _begins(token: str, marks: Marks) -> bool:
    match marks:
        case "continued":
            return not token.startswith("##")
        case "begun":
            return token.startswith(BEGUN)
        case "ended":
            return False  # the token before would have said so
