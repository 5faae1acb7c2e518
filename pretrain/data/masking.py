"""Which tokens masked language modelling hides (BERT, arXiv:1810.04805, section 3.1)."""

import numpy as np

IGNORE = -100  # cross-entropy skips it


def mask_tokens(
    token_ids_L: np.ndarray,
    special_L: np.ndarray,
    mask_id: int,
    vocabulary: int,
    probability: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Hides each ordinary token with `probability`: 80 % as [MASK], 10 % as a random token, 10 % unchanged.

    Args:
        token_ids_L: int64 [L].
        special_L: bool [L], tokens that are never chosen.
        mask_id: The [MASK] token.
        vocabulary: Random tokens are drawn below this.

    Returns:
        The corrupted ids and the labels, int64 [L] each; the label is the original id where chosen, else `IGNORE`. A
        text with any ordinary token has at least one chosen, so that short texts are learned from too.
    """
    chosen_L = (rng.random(len(token_ids_L)) < probability) & ~special_L
    ordinary = np.flatnonzero(~special_L)
    if len(ordinary) and not chosen_L.any():
        chosen_L[rng.choice(ordinary)] = True
    fate_L = rng.random(len(token_ids_L))
    random_L = rng.integers(vocabulary, size=len(token_ids_L))
    masked_L = np.where(chosen_L & (fate_L < 0.8), mask_id, token_ids_L)
    masked_L = np.where(chosen_L & (fate_L >= 0.9), random_L, masked_L)
    return masked_L, np.where(chosen_L, token_ids_L, IGNORE)
