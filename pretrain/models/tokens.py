"""What every visual embedder yields.

Shapes: B images, N tokens, D width.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor


class ImageTokens(NamedTuple):
    """Tokens float [B, N, D], bool [B, N] where there is one, and a vector for the whole image float [B, P]."""

    tokens_BND: Tensor
    mask_BN: Tensor
    pooled_BP: Tensor

    @staticmethod
    def pooled_by(tokens_BND: Tensor, mask_BN: Tensor, pooling: Literal["first", "mean"]) -> "ImageTokens":
        """With the first token, or the mean of those that are there, as the vector."""
        return ImageTokens(
            tokens_BND, mask_BN, tokens_BND[:, 0] if pooling == "first" else masked_mean(tokens_BND, mask_BN)
        )


def masked_mean(x_BND: Tensor, mask_BN: Tensor) -> Tensor:
    """Mean over the places that are there, float [B, D]; zeros where none is."""
    weights_BN1 = mask_BN.unsqueeze(-1).to(x_BND.dtype)
    return (x_BND * weights_BN1).sum(1) / weights_BN1.sum(1).clamp(min=1)


def random_subset(mask_BN: Tensor, keep: int) -> Tensor:
    """int64 [B, min(keep, N)], places of a random subset in their order, those that are there before those that are
    not."""
    score_BN = torch.rand(mask_BN.shape, device=mask_BN.device) + mask_BN
    return score_BN.topk(min(keep, mask_BN.shape[1]), 1).indices.sort(1).values


def pick(x_BND: Tensor, places_BK: Tensor) -> Tensor:
    """float [B, K, D]: those tokens."""
    return x_BND.gather(1, places_BK.unsqueeze(-1).expand(-1, -1, x_BND.shape[-1]))
