"""Which objectives a step trains: all of them, or one entry of a mixture (UNITER, arXiv:1909.11740, section 3.2)."""

from collections.abc import Mapping

import numpy as np


def draw_entry(mix: Mapping[str, float], seed: int, step: int) -> list[str]:
    """The objectives of an entry of `mix`, drawn by its share; a function of (seed, step), so alike on all ranks.

    Args:
        mix: `name` or `name+name` -> share of the steps; shares need not sum to 1.
    """
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, step], dtype=np.uint64)))
    shares = np.array(list(mix.values())) / sum(mix.values())
    return list(mix)[rng.choice(len(shares), p=shares)].split("+")
