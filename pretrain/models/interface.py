"""What every composition offers: each side alone (retrieval needs it), and the two fused.

Shapes: B items, N image tokens, L text tokens, D width, E embedding size.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
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

    def rows(self, index: "slice | Tensor") -> "Encoded":
        """The items that `index` picks: a slice, or int64 positions."""
        return Encoded(self.tokens_BTD[index], self.mask_BT[index], self.embedding_BE[index])


@dataclass(frozen=True)
class Memory:
    """An image as the fusion layers see it: a pair of keys and values, float [B, heads, N, d], for each layer.

    Attributes:
        mask_BN: bool [B, N], True where there is an image token.
    """

    layers: list[tuple[Tensor, Tensor]]
    mask_BN: Tensor

    def rows(self, index: "slice | Tensor") -> "Memory":
        """The images that `index` picks, repeated where it repeats."""
        return Memory([(keys[index], values[index]) for keys, values in self.layers], self.mask_BN[index])

    @staticmethod
    def concatenate(parts: "list[Memory]") -> "Memory":
        """One after the other along the batch."""
        layers = [
            (torch.cat([keys for keys, _ in layer]), torch.cat([values for _, values in layer]))
            for layer in zip(*(part.layers for part in parts), strict=True)
        ]
        return Memory(layers, torch.cat([part.mask_BN for part in parts]))


class VisionLanguageModel(Protocol):
    """A dual or fused encoder of images and texts."""

    width: int

    @property
    def word_embedding_VD(self) -> Tensor:
        """The text encoder's input embedding, float [V, D]: language heads predict with it."""
        ...

    def encode_image(self, pixels_BHWC: Tensor) -> Encoded:
        """uint8 [B, H, W, 3] -> image tokens and embedding."""
        ...

    def encode_text(self, token_ids_BL: Tensor, token_mask_BL: Tensor) -> Encoded:
        """int64 [B, L], bool [B, L] -> text tokens and embedding."""
        ...

    def remember(self, image: Encoded) -> Memory:
        """What fusing needs of the images, computed once however many texts each will meet."""
        ...

    def fuse(self, text: Encoded, memory: Memory) -> Tensor:
        """Row i of the texts with row i of the images -> float [B, L, D]; position 0 stands for the pair."""
        ...
