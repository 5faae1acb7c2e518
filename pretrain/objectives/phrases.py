"""Phrases and the parts of the image that they name (X-VLM, arXiv:2111.08276, section 3.1 and official code).

Shapes: B pairs, P phrase tokens, N image tokens, of which g x g are a grid, D width.
"""

from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.batch import Batch
from pretrain.models.interface import Encoded, TextInput, VisionLanguageModel
from pretrain.models.tokens import masked_mean


def phrase_input(batch: Batch, masked: bool) -> TextInput:
    """The phrases, with hidden words if `masked`."""
    ids_BP = batch.phrase_masked_ids_BP if masked else batch.phrase_ids_BP
    assert ids_BP is not None, "the batch was made without phrases"
    assert batch.phrase_mask_BP is not None
    return TextInput(ids_BP, batch.phrase_mask_BP, None if batch.segments_BL is None else torch.zeros_like(ids_BP))


def region_of(image: Encoded, batch: Batch, model: VisionLanguageModel) -> Encoded:
    """The tokens of the whole image that lie in the phrase's box, and their projected mean.

    Tokens before the grid are left out: they know of all of the image.
    """
    assert batch.phrase_box_B4 is not None, "the batch was made without phrases"
    prefix = model.shape.image_prefix
    side = isqrt(image.tokens_BTD.shape[1] - prefix)
    mask_BN = F.pad(touched(batch.phrase_box_B4, side).flatten(1), (prefix, 0))
    if model.shape.embedding_dim is None:
        return Encoded(image.tokens_BTD, mask_BN)
    mean_BD = masked_mean(image.tokens_BTD, mask_BN)
    return Encoded(image.tokens_BTD, mask_BN, F.normalize(model.image_projection(mean_BD), dim=-1))


def touched(boxes_B4: Tensor, side: int) -> Tensor:
    """Which cells of a grid each box touches, at least one; bool [B, g, g]."""
    low_B2 = (boxes_B4[:, :2] * side).floor().clamp(max=side - 1)
    high_B2 = torch.maximum((boxes_B4[:, 2:] * side).ceil(), low_B2 + 1)
    place_g = torch.arange(side, device=boxes_B4.device)
    inside_B2g = (place_g >= low_B2[..., None]) & (place_g < high_B2[..., None])
    return inside_B2g[:, 1, :, None] & inside_B2g[:, 0, None, :]
