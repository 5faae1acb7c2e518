"""The batch that reaches the model: named tensors, one legend of shapes.

Shapes: B pairs on this rank, H x W pixels, L tokens (padded to the longest text of the batch).
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch.

    Attributes:
        pixels_BHWC: uint8 [B, H, W, 3], RGB; normalised on the device.
        token_ids_BL: int64 [B, L], starting with [CLS], ending with [SEP], padded with [PAD].
        token_mask_BL: bool [B, L], True where there is a token.
        masked_ids_BL: int64 [B, L], the same text with masked-language corruption.
        masked_labels_BL: int64 [B, L], the original id where it was masked, -100 elsewhere.
        group_B: int64 [B], equal where two pairs may not serve as each other's negatives.
        draws_BK: float64 [B, K] uniform in [0, 1): every random choice of the objectives comes from here, so that it is
            a function of the sample's place in the global order and not of the rank.
    """

    pixels_BHWC: Tensor
    token_ids_BL: Tensor
    token_mask_BL: Tensor
    masked_ids_BL: Tensor
    masked_labels_BL: Tensor
    group_B: Tensor
    draws_BK: Tensor

    def __len__(self) -> int:
        return self.pixels_BHWC.shape[0]

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})
