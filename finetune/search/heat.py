"""Where in a picture a word is: the cosine of each word's tokens with each image token, both in the shared space.

Of the ways at hand this one points best: for 2,855 names of objects in generated scenes, the hottest of 16 patches lay
on the object in 60 % of cases. Cross-attention weights managed 7 to 19 % (they rest on the background); chance is 30 %.

Shapes: L text tokens, N image tokens, E embedding, g tokens along a side of the picture.
"""

from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.search.encoder import Encoder
from pretrain.models.interface import Encoded

HOW: Final = "token similarity"


@dataclass(frozen=True)
class WordHeat:
    """A word, and g rows of g cosines from the top left."""

    word: str
    heat: list[list[float]]


def grid_side(encoder: Encoder) -> int | None:
    """g, or None for an image encoder whose tokens are no square grid in the space of its pooled vector."""
    vision, size = encoder.model.vision, encoder.checkpoint.config.model.image_size
    if vision.width != vision.pooled_width:
        return None
    with torch.inference_mode():
        blank = torch.zeros(1, size, size, 3, dtype=torch.uint8, device=encoder.device)
        tokens = encoder.model.encode_image(blank).tokens_BTD.shape[1] - _prefix(encoder)
    side = round(tokens**0.5)
    return side if side * side == tokens else None


@torch.inference_mode()
def word_heat(encoder: Encoder, text: str, image: Encoded, side: int) -> list[WordHeat]:
    """The words of `text` over one picture; those past `data.max_tokens` are left out."""
    model = encoder.model
    words = encoder.checkpoint.tokenizer.words(text, encoder.checkpoint.config.data.max_tokens)
    text_LE = F.normalize(model.text_projection(encoder.texts([text]).tokens_BTD[0]), dim=-1)
    image_NE = F.normalize(model.image_projection(image.tokens_BTD[0, _prefix(encoder) :]), dim=-1)
    similarity_LN = text_LE @ image_NE.T
    return [WordHeat(word, _rows(similarity_LN[places].mean(0), side)) for word, places in words]


def _rows(heat_N: Tensor, side: int) -> list[list[float]]:
    return [[round(value, 4) for value in row] for row in heat_N.float().view(side, side).tolist()]


def _prefix(encoder: Encoder) -> int:
    """Tokens before the grid, such as [CLS]; convolutional networks have none."""
    return getattr(encoder.model.vision.backbone, "num_prefix_tokens", 0)
