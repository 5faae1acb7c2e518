"""What every composition offers: each side alone (retrieval needs it), and the two fused.

Shapes: B items, N image tokens, L text tokens, D width, E embedding size.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """One modality encoded alone.

    Attributes:
        tokens_BTD: float [B, T, D] token features (T is N for images, L for texts).
        mask_BT: bool [B, T], True where there is a token.
        embedding_BE: float [B, E], L2-normalised, comparable across modalities by dot product.
    """

    tokens_BTD: Tensor
    mask_BT: Tensor
    embedding_BE: Tensor


class VisionLanguageModel(Protocol):
    """A dual or fused encoder of images and texts."""

    width: int

    def encode_image(self, pixels_BHWC: Tensor) -> Encoded:
        """uint8 [B, H, W, 3] -> image tokens and embedding."""
        ...

    def encode_text(self, token_ids_BL: Tensor, token_mask_BL: Tensor) -> Encoded:
        """int64 [B, L], bool [B, L] -> text tokens and embedding."""
        ...

    def fuse(self, text: Encoded, image: Encoded) -> Tensor:
        """Row i of the texts with row i of the images -> float [B, L, D]; position 0 stands for the pair."""
        ...
