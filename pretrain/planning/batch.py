"""The largest batch that a rank can get, made from the configuration alone.

Shapes: B pairs on this rank, L tokens, K regions.
"""

from typing import Any

import torch
from torch import Tensor

from pretrain.batch import Batch, Draw
from pretrain.config import PretrainConfig
from pretrain.data.masking import IGNORE

FRAME = 2  # the first and the last token, which are never hidden
ATTRIBUTES = 1


def largest_batch(config: PretrainConfig, pairs: int) -> Batch:
    """`pairs` pairs with texts of `data.max_tokens`, `data.regions.most` regions, and as much hidden as is usual."""
    data, shape = config.data, (pairs, config.data.max_tokens)
    ids_BL = torch.full(shape, 5)
    hidden_BL = _spread(shape, _hidden_words(config) * (shape[1] - FRAME) / shape[1])
    return Batch(
        token_ids_BL=ids_BL,
        token_mask_BL=torch.ones(shape, dtype=torch.bool),
        masked_ids_BL=ids_BL.clone(),
        masked_labels_BL=torch.where(hidden_BL, ids_BL, IGNORE),
        group_B=torch.arange(pairs),
        draws_BK=torch.full((pairs, len(Draw)), 0.5, dtype=torch.float64),
        segments_BL=(torch.arange(shape[1]) >= shape[1] // 2).long().repeat(pairs, 1) if data.second else None,
        pollution_B=torch.arange(pairs) % 2 if config.objectives.pollution else None,
        **_pixels(config, pairs),
        **_regions(config, pairs),
        **_phrases(config, ids_BL),
    )


def _pixels(config: PretrainConfig, pairs: int) -> dict[str, Tensor]:
    if config.model.vision.region:
        return {}
    side = config.model.image_size
    return {"pixels_BHWC": torch.zeros((), dtype=torch.uint8).expand(pairs, side, side, 3)}


def _regions(config: PretrainConfig, pairs: int) -> dict[str, Tensor]:
    regions, embedder = config.data.regions, config.model.vision.region
    if regions is None:
        return {}
    shape = (pairs, regions.most)
    found: dict[str, Any] = {
        "region_boxes_BK4": torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(*shape, 4),
        "region_mask_BK": torch.ones(shape, dtype=torch.bool),
        "region_labels_BK": torch.zeros(shape, dtype=torch.int64),
        "region_attributes_BKA": torch.zeros((*shape, ATTRIBUTES), dtype=torch.int64),
        "masked_regions_BK": _spread(shape, regions.hide),
    }
    if embedder:
        found["region_features_BKF"] = torch.zeros(()).expand(*shape, embedder.features)
    if regions.classes:
        found["region_probabilities_BKC"] = torch.zeros(()).expand(*shape, regions.classes)
    return found


def _phrases(config: PretrainConfig, ids_BL: Tensor) -> dict[str, Tensor]:
    if config.objectives.box is None:
        return {}
    boxes_B4 = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(len(ids_BL), 1)
    return {
        "phrase_ids_BP": ids_BL,
        "phrase_mask_BP": torch.ones(ids_BL.shape, dtype=torch.bool),
        "phrase_box_B4": boxes_B4,
    }


def _hidden_words(config: PretrainConfig) -> float:
    """The share of tokens that masked-language modelling hides, the second segment being half of the text."""
    mlm = config.objectives.mlm
    if mlm is None:
        return 0.0
    if config.data.second is None or mlm.second_probability is None:
        return mlm.probability
    return (mlm.probability + mlm.second_probability) / 2


def _spread(shape: tuple[int, int], share: float) -> Tensor:
    """bool, about `share` of the places of each row, at least one where there is to be any."""
    chosen = round(share * shape[1]) if share == 0 else max(1, round(share * shape[1]))
    return (torch.arange(shape[1]) < chosen).repeat(shape[0], 1)
