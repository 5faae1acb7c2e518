"""Similarities that are the best matches of tokens, as the contrast was trained: FILIP's and BLIP-2's.

Shapes: I images, U distinct texts, B of a block, N image tokens, L text tokens, E embedding size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.models.build import DuoModel
from pretrain.models.interface import Encoded
from pretrain.objectives.config import SimilarityKind
from pretrain.objectives.late_interaction import query_maximum, token_maximum


@torch.no_grad()
def block_similarity(kind: SimilarityKind, model: DuoModel, image: Encoded, text: Encoded) -> Tensor:
    """Image against text and text against image, float32 [2, B images, B texts] on the CPU; of `queries` both agree."""
    image_BNE = F.normalize(model.image_projection(image.tokens_BTD), dim=-1)
    if kind == "queries":
        return query_maximum(image_BNE, image.mask_BT, text.embedding_BE).float().cpu().expand(2, -1, -1)
    text_BLE = F.normalize(model.text_projection(text.tokens_BTD), dim=-1)
    by_image = token_maximum(image_BNE, image.mask_BT, text_BLE, text.mask_BT)
    by_text = token_maximum(text_BLE, text.mask_BT, image_BNE, image.mask_BT).T
    return torch.stack([by_image, by_text]).float().cpu()
