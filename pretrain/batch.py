"""The batch that reaches the model: named tensors, one legend of shapes.

Shapes: B pairs on this rank, H x W pixels, L tokens (padded to the longest text of the batch), K regions (padded to the
largest number of the batch), F region features, C classes of a detector, A attributes of a region.
"""

from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor

from pretrain.rows import Rows


class Draw(IntEnum):
    """What each column of `Batch.draws_BK` decides; a new one goes last, which leaves the others' numbers alone."""

    WRONG_TEXT = 0
    WRONG_IMAGE = 1
    PREFIX = 2
    SWAP = 3
    BANK = 4


@dataclass(frozen=True)
class Batch(Rows):
    """One rank's part of a global batch. What the configuration does not need is None.

    Attributes:
        token_ids_BL: int64 [B, L], framed by the tokenizer's first and last token, padded.
        token_mask_BL: bool [B, L], True where there is a token.
        masked_ids_BL: int64 [B, L], the same text with masked-language corruption.
        masked_labels_BL: int64 [B, L], the original id where it was masked, -100 elsewhere.
        group_B: int64 [B], equal where two pairs may not serve as each other's negatives.
        draws_BK: float64 [B, draws] uniform in [0, 1): every random choice of the objectives comes from here, so that
            it is a function of the sample's place in the global order and not of the rank.
        pixels_BHWC: uint8 [B, H, W, 3], RGB; normalised on the device.
        segments_BL: int64 [B, L], 0 for the caption, 1 for tags or a second caption.
        region_features_BKF: float32 [B, K, F].
        region_boxes_BK4: float32 [B, K, 4], left, top, right, bottom as shares of the image's width and height.
        region_mask_BK: bool [B, K], True where there is a region.
        region_labels_BK: int64 [B, K], -100 where unknown.
        region_attributes_BKA: int64 [B, K, A], -100 where there is none.
        region_probabilities_BKC: float32 [B, K, C], what the detector believes; one-hot of the label without it.
        pollution_B: int64 [B], 0 where the text is the image's own, 1 or 2 where a part of it is not.
        phrase_ids_BP: int64 [B, P], what names one region of the image.
        phrase_mask_BP: bool [B, P], True where there is a token.
        phrase_masked_ids_BP: int64 [B, P], the same with masked-language corruption.
        phrase_labels_BP: int64 [B, P], the original id where it was masked, -100 elsewhere.
        phrase_group_B: int64 [B], equal where two phrases have the same words.
        phrase_box_B4: float32 [B, 4], that region's left, top, right, bottom as shares of the image.
        masked_regions_BK: bool [B, K], regions that masked region modelling hides and asks for.
        zeroed_regions_BK: bool [B, K], those of them of which nothing is seen; None: all of them.
        shown_features_BKF: float32 [B, K, F], what is seen in place of `region_features_BKF` while regions are hidden;
            None: the same.
        image_sizes_B2: int64 [B, 2], height and width in pixels of what is an image and not padding.
    """

    token_ids_BL: Tensor
    token_mask_BL: Tensor
    masked_ids_BL: Tensor
    masked_labels_BL: Tensor
    group_B: Tensor
    draws_BK: Tensor
    pixels_BHWC: Tensor | None = None
    segments_BL: Tensor | None = None
    region_features_BKF: Tensor | None = None
    region_boxes_BK4: Tensor | None = None
    region_mask_BK: Tensor | None = None
    region_labels_BK: Tensor | None = None
    region_attributes_BKA: Tensor | None = None
    region_probabilities_BKC: Tensor | None = None
    masked_regions_BK: Tensor | None = None
    zeroed_regions_BK: Tensor | None = None
    shown_features_BKF: Tensor | None = None
    pollution_B: Tensor | None = None
    phrase_ids_BP: Tensor | None = None
    phrase_mask_BP: Tensor | None = None
    phrase_masked_ids_BP: Tensor | None = None
    phrase_labels_BP: Tensor | None = None
    phrase_group_B: Tensor | None = None
    phrase_box_B4: Tensor | None = None
    image_sizes_B2: Tensor | None = None

    def __len__(self) -> int:
        return len(self.token_ids_BL)
