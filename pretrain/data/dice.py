"""The random draws of a whole batch, one row per sample, handed out column by column.

Each row comes from the generator of its sample's place in the order, so what a batch operation does to a sample depends
on neither its neighbours nor the number of ranks.

Shapes: B samples, K draws of each.
"""

import numpy as np
import torch
from torch import Tensor

DRAWS = 128
"""Of each sample, K; more than all operations together ask for."""


def throw(rng: np.random.Generator) -> np.ndarray:
    """One sample's draws, float32 [K] in [0, 1)."""
    return rng.random(DRAWS, np.float32)


class Dice:
    """Hands out the columns of `uniform_BK` in the order in which they are asked for.

    Args:
        uniform_BK: float [B, K] in [0, 1), rows made by `throw`.
    """

    def __init__(self, uniform_BK: Tensor) -> None:
        self._left_BK = uniform_BK

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """float [B, *shape] in [low, high)."""
        count = int(np.prod(shape, dtype=np.int64))
        assert count <= self._left_BK.shape[1], f"{DRAWS} draws a sample are too few"
        taken_BK, self._left_BK = self._left_BK[:, :count], self._left_BK[:, count:]
        return low + (high - low) * taken_BK.reshape(len(taken_BK), *shape)

    def normal(self, *shape: int) -> Tensor:
        """float [B, *shape] of mean 0 and deviation 1, cut at about five deviations."""
        return torch.special.ndtri(self.uniform(2e-7, 1 - 2e-7, *shape))

    def chance(self, probability: float, *shape: int) -> Tensor:
        """bool [B, *shape], True with this probability."""
        return self.uniform(0, 1, *shape) < probability

    def factor(self, strength: float, *shape: int) -> Tensor:
        """float [B, *shape] between 1 / (1 + strength) and 1 + strength, evenly on a logarithmic scale."""
        return torch.exp(self.uniform(-1, 1, *shape) * np.log1p(strength))
