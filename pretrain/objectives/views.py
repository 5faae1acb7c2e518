"""The forwards that objectives share: each runs when first asked for, and once.

Shapes: B pairs on this rank, G pairs of all ranks, L text tokens, N image tokens, D and C widths.
"""

from functools import cached_property

import torch

from pretrain.batch import Batch
from pretrain.models.interface import Encoded, Memory, VisionLanguageModel


class Views:
    """One batch seen through one model.

    Args:
        masked: Whether an objective reads `masked_text`; both texts then go through the encoder together.
    """

    def __init__(self, model: VisionLanguageModel, batch: Batch, masked: bool) -> None:
        self.model, self.batch, self._masked = model, batch, masked

    @cached_property
    def image(self) -> Encoded:
        return self.model.encode_image(self.batch.pixels_BHWC)

    @cached_property
    def text(self) -> Encoded:
        return self._texts[0]

    @cached_property
    def masked_text(self) -> Encoded:
        return self._texts[1]

    @cached_property
    def memory(self) -> Memory:
        """This rank's images as the fusion layers see them."""
        return self.model.remember(self.image)

    @cached_property
    def _texts(self) -> list[Encoded]:
        ids_BL, mask_BL = self.batch.token_ids_BL, self.batch.token_mask_BL
        if not self._masked:
            return [self.model.encode_text(ids_BL, mask_BL)]
        both = self.model.encode_text(torch.cat([ids_BL, self.batch.masked_ids_BL]), torch.cat([mask_BL, mask_BL]))
        rows = len(ids_BL)
        return [both.rows(slice(None, rows)), both.rows(slice(rows, None))]
