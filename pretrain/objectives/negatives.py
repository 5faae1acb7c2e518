"""Wrong partners from the batches of all ranks, by draws that travel with the samples.

Shapes: B pairs on this rank, G pairs of all ranks, L text tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pretrain import distributed
from pretrain.batch import Batch, Draw
from pretrain.distributed import gather, max_over_ranks
from pretrain.models.interface import Encoded

SWAPPED = 0.5  # share of the texts


class Swap(NamedTuple):
    """Whose text each pair gets, int64 [B] into the global batch, and whether that is its own, bool [B]."""

    source_B: Tensor
    match_B: Tensor


def draw_negatives(similarity_BG: Tensor, allowed_BG: Tensor, draw_B: Tensor) -> Tensor:
    """Draws one column per row with probability softmax(similarity), among the allowed ones.

    Args:
        similarity_BG: float [B, G] logits.
        allowed_BG: bool [B, G].
        draw_B: float64 [B], uniform in [0, 1): the whole randomness, so that the draw does not depend on the rank.

    Returns:
        int64 [B]; any column where a row allows none (mask those rows with `allowed_BG.any(1)`).
    """
    probability_BG = similarity_BG.double().masked_fill(~allowed_BG, -torch.inf).softmax(1).nan_to_num()
    cumulative_BG = probability_BG.cumsum(1)
    drawn_B = torch.searchsorted(cumulative_BG, (draw_B * cumulative_BG[:, -1])[:, None], right=True)[:, 0]
    return drawn_B.clamp(max=similarity_BG.shape[1] - 1)


def swap_texts(batch: Batch) -> Swap:
    """Replaces each text with probability one half by one of another group.

    As a set of pairs this is the same as replacing images, which are larger to gather.
    """
    group_G = gather(batch.group_B)
    allowed_BG = batch.group_B[:, None] != group_G
    other_B = draw_negatives(
        torch.zeros_like(allowed_BG, dtype=torch.float64), allowed_BG, _draw(batch, Draw.WRONG_TEXT)
    )
    own_B = distributed.rank() * len(batch) + torch.arange(len(batch), device=group_G.device)
    swapped_B = (_draw(batch, Draw.SWAP) < SWAPPED) & allowed_BG.any(1)
    return Swap(torch.where(swapped_B, other_B, own_B), ~swapped_B)


def gather_encoded(local: Encoded) -> Encoded:
    """All ranks' items, padded to the longest; with gradients."""
    local = local.padded(max_over_ranks(local.mask_BT.shape[1]))
    shared_BE = None if local.shared_BE is None else gather(local.shared_BE)
    return Encoded(gather(local.tokens_BTD), gather(local.mask_BT), shared_BE)


def _draw(batch: Batch, column: Draw) -> Tensor:
    return batch.draws_BK[:, column]
