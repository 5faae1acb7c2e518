"""Which tokens masked language modelling hides, and what stands in their place.

Single tokens (BERT, arXiv:1810.04805, section 3.1), whole words (ViLT, arXiv:2102.03334, section 3.2) or spans of words
(SpanBERT, arXiv:1907.10529, section 3.1; UNIMO, arXiv:2012.15409). Every random choice comes from the generator that is
passed in.

Shapes: L tokens.
"""

from typing import Literal

import numpy as np

IGNORE = -100  # cross-entropy skips it
MEAN_SPAN, LONGEST_SPAN = 5, 10  # words, before lengths beyond the longest are cut to it

Unit = Literal["token", "word", "span"]


def mask_tokens(
    token_ids_L: np.ndarray, chosen_L: np.ndarray, mask_id: int, vocabulary: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Hides the chosen tokens: 80 % become [MASK], 10 % a random token, 10 % stay.

    Args:
        token_ids_L: int64 [L].
        chosen_L: bool [L].
        mask_id: The [MASK] token.
        vocabulary: Random tokens are drawn below this.

    Returns:
        The corrupted ids and the labels, int64 [L] each; the label is the original id where chosen, else `IGNORE`.
    """
    fate_L = rng.random(len(token_ids_L))
    random_L = rng.integers(vocabulary, size=len(token_ids_L))
    masked_L = np.where(chosen_L & (fate_L < 0.8), mask_id, token_ids_L)
    masked_L = np.where(chosen_L & (fate_L >= 0.9), random_L, masked_L)
    return masked_L, np.where(chosen_L, token_ids_L, IGNORE)


def choose(words_L: np.ndarray, probability_L: np.ndarray, unit: Unit, rng: np.random.Generator) -> np.ndarray:
    """bool [L], which tokens are hidden: at least one where any may be, so that short texts are learned from too.

    Args:
        words_L: int64 [L], the number of each token's word, growing from left to right; -1 for tokens never chosen.
        probability_L: float [L], each token's chance; a word or span has the chance of its first token.
        unit: What is hidden together. Spans fill the same share of the text with fewer, longer gaps.
    """
    may_L = (words_L >= 0) & (probability_L > 0)
    if not may_L.any():
        return np.zeros(len(words_L), bool)
    if unit == "token":
        return _units(np.where(may_L, np.arange(len(words_L)), -1), probability_L, rng)
    units_L = np.where(may_L, words_L, -1)
    return _units(units_L, probability_L, rng) if unit == "word" else _spans(units_L, probability_L, rng)


def _units(unit_L: np.ndarray, probability_L: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    units_U, first_U = np.unique(unit_L[unit_L >= 0], return_index=True)
    chance_U = probability_L[unit_L >= 0][first_U]
    chosen_U = rng.random(len(units_U)) < chance_U
    if not chosen_U.any():
        chosen_U[rng.integers(len(units_U))] = True
    return np.isin(unit_L, units_U[chosen_U])


def _spans(word_L: np.ndarray, probability_L: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Spans of geometric length from random words, until the expected number of tokens is hidden."""
    words_U, length_U = np.unique(word_L[word_L >= 0], return_counts=True)
    budget = max(1, round(float(probability_L[word_L >= 0].sum())))
    hidden_U = np.zeros(len(words_U), bool)
    while (hidden_U * length_U).sum() < budget:
        length = min(int(rng.geometric(1 / MEAN_SPAN)), LONGEST_SPAN)
        start = int(rng.integers(len(words_U)))
        for word in range(start, min(start + length, len(words_U))):
            if (hidden_U * length_U).sum() < budget:
                hidden_U[word] = True
    return np.isin(word_L, words_U[hidden_U])
