"""Similarity of two items as the best matches of their parts, in place of one dot product.

`token_maximum` (FILIP, arXiv:2111.07783, eq. 3-5): each token of one side takes its most similar token of the other,
and these are averaged. `query_maximum` (BLIP-2, arXiv:2301.12597, section 3.1): the most similar query of the image.

Shapes: B items on this rank, G of all ranks, S and T tokens, E embedding size; all tokens L2-normalised.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pretrain.precision import in_full_precision

ITEMS = 64  # of the gallery that are compared at a time: the table of token pairs is B x ITEMS x S x T


@in_full_precision
def token_maximum(rows_BSE: Tensor, mask_BS: Tensor, gallery_GTE: Tensor, mask_GT: Tensor) -> Tensor:
    """Mean over a row's tokens of the largest similarity with a token of the other item; float [B, G].

    Masked tokens are neither averaged nor chosen. It is not symmetric: images against texts differ from texts against
    images. Tables of token pairs are held for `ITEMS` items at a time; the backward makes them again.
    """
    weights_BS = mask_BS.to(rows_BSE.dtype)
    share_BS = weights_BS / weights_BS.sum(1, keepdim=True)
    parts = [
        checkpoint(_columns, rows_BSE, share_BS, other, mask, use_reentrant=False, preserve_rng_state=False)
        for other, mask in zip(gallery_GTE.split(ITEMS), mask_GT.split(ITEMS), strict=True)
    ]
    return torch.cat(parts, 1)


def _columns(rows_BSE: Tensor, share_BS: Tensor, gallery_CTE: Tensor, mask_CT: Tensor) -> Tensor:
    similarity_BCST = torch.einsum("bse,cte->bcst", rows_BSE, gallery_CTE)
    best_BCS = similarity_BCST.masked_fill(~mask_CT[None, :, None], -torch.inf).amax(3)
    return (best_BCS * share_BS[:, None]).sum(2)


@in_full_precision
def query_maximum(queries_BSE: Tensor, mask_BS: Tensor, embedding_GE: Tensor) -> Tensor:
    """The largest similarity of an image's queries with a text; float [B, G], images in rows."""
    similarity_BSG = queries_BSE @ embedding_GE.T
    return similarity_BSG.masked_fill(~mask_BS[..., None], -torch.inf).amax(1)
