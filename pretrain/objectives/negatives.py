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


def draw_several(logits_BG: Tensor, allowed_BG: Tensor, draw_B: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Draws columns without repetition, by Gumbel's top k (arXiv:1903.06059).

    Args:
        logits_BG: float [B, G]; all equal draws evenly.
        allowed_BG: bool [B, G].
        draw_B: float64 [B], uniform in [0, 1): the whole randomness.

    Returns:
        int64 [B, K] and whether each is allowed, bool [B, K]; K is `count`, or G where that is less.
    """
    uniform_BG = _uniform(draw_B, logits_BG.shape[1])
    keys_BG = (logits_BG.double() - (-uniform_BG.log()).log()).masked_fill(~allowed_BG, -torch.inf)
    index_BK = keys_BG.topk(min(count, keys_BG.shape[1]), 1).indices
    return index_BK, allowed_BG.gather(1, index_BK)


def _uniform(draw_B: Tensor, columns: int) -> Tensor:
    """Numbers in (0, 1) that depend on the row's draw and the column alone, float64 [B, columns] (splitmix64)."""
    step = torch.arange(1, columns + 1, device=draw_B.device) * _signed(0x9E3779B97F4A7C15)
    bits = (draw_B * 2**53).long()[:, None] + step
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ _shifted(bits, shift)) * _signed(factor)
    return (_shifted(bits ^ _shifted(bits, 31), 11).double() + 0.5) / 2**53


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


def _shifted(bits: Tensor, places: int) -> Tensor:
    """A shift to the right that brings in zeros."""
    return (bits >> places) & (2 ** (64 - places) - 1)


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
