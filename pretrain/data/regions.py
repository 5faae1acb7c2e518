"""A sample's regions as arrays: the most confident ones, with boxes as shares of the image, some of them hidden.

Shapes: K regions, F features, C classes, A attributes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pretrain.config import RegionsConfig
from pretrain.data.labels import UNKNOWN, RegionVocabulary
from shards.decode import sample_size
from shards.errors import UserError
from shards.sample import Sample

Elsewhere = Callable[[], np.ndarray | None]
"""Draws the features of a region of another image, float [F]; None where there is none."""


@dataclass(frozen=True)
class Regions:
    """What a batch needs of one sample; fields as in `pretrain.batch.Batch`."""

    features_KF: np.ndarray | None
    boxes_K4: np.ndarray
    labels_K: np.ndarray
    attributes_KA: np.ndarray
    probabilities_KC: np.ndarray | None
    hidden_K: np.ndarray
    zeroed_K: np.ndarray | None = None
    shown_KF: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.boxes_K4)


def check_regions(sample: Sample, features: int | None) -> None:
    """Refuses a sample that lacks what the model reads.

    Args:
        features: F of the model; None where boxes and labels are enough.

    Raises:
        UserError: no regions, no features, or features of another length.
    """
    if not sample.regions:
        raise UserError(f"`data.regions` needs regions, and sample {sample.key} has none")
    if features is None:
        return
    if sample.region_features is None:
        raise UserError(f"`model.vision.region` needs region features, and sample {sample.key} has none")
    found = sample.region_features.shape[1]
    if found != features:
        raise UserError(
            f"`model.vision.region.features` (={features}) must be that of the data: sample {sample.key} has {found}"
        )


def read_regions(
    sample: Sample,
    config: RegionsConfig,
    features: int | None,
    vocabulary: RegionVocabulary,
    rng: np.random.Generator | None = None,
    elsewhere: Elsewhere = lambda: None,
) -> Regions:
    """The `config.most` most confident regions in the order of the sample.

    Where `config.classes` asks for a distribution and the sample has none, it is one-hot of the label.

    Args:
        features: As in `check_regions`.
        rng: What hides regions; None hides none.
        elsewhere: What `config.replace` shows; where there is none, the region is not seen.
    """
    check_regions(sample, features)
    scores = np.array([region.score for region in sample.regions])
    chosen = np.sort(np.argsort(-scores, kind="stable")[: config.most])
    sure = chosen[scores[chosen] >= config.least_score]
    chosen = sure if len(sure) else chosen[:1]
    kept = [sample.regions[i] for i in chosen]
    width, height = sample_size(sample)
    boxes_K4 = np.array([region.box for region in kept], np.float32) / np.array(
        [width, height, width, height], np.float32
    )
    labels_K = np.array([vocabulary.label(region.label) for region in kept], np.int64)
    named = [[vocabulary.attribute(name) for name in region.attributes] for region in kept]
    read = sample.region_features if features is not None else None
    features_KF = None if read is None else read[chosen].astype(np.float32)
    hidden_K = np.zeros(len(kept), bool) if rng is None else hide(boxes_K4, config.hide, config.hide_overlap, rng)
    zeroed_K, shown_KF = None, None
    if rng is not None and (config.keep or config.replace):
        zeroed_K, shown_KF = spare(hidden_K, features_KF, config, rng, elsewhere)
    return Regions(
        features_KF=features_KF,
        boxes_K4=boxes_K4.clip(0, 1),
        labels_K=labels_K,
        attributes_KA=stack_rows([np.array(row, np.int64) for row in named], UNKNOWN),
        probabilities_KC=_probabilities(sample, chosen, labels_K, config.classes) if config.classes else None,
        hidden_K=hidden_K,
        zeroed_K=zeroed_K,
        shown_KF=shown_KF,
    )


def hide(boxes_K4: np.ndarray, probability: float, overlap: float | None, rng: np.random.Generator) -> np.ndarray:
    """bool [K], regions that masked region modelling hides.

    Each with `probability`, at least one if that is not 0, and with it what covers it by an intersection over union of
    more than `overlap` (ViLBERT, arXiv:1908.02265, which would otherwise give the answer away).
    """
    if not probability:
        return np.zeros(len(boxes_K4), bool)
    hidden_K = rng.random(len(boxes_K4)) < probability
    if not hidden_K.any():
        hidden_K[rng.integers(len(boxes_K4))] = True
    if overlap is not None:
        hidden_K |= (overlaps(boxes_K4)[hidden_K] > overlap).any(0)
    return hidden_K


def spare(
    hidden_K: np.ndarray,
    features_KF: np.ndarray | None,
    config: RegionsConfig,
    rng: np.random.Generator,
    elsewhere: Elsewhere,
) -> tuple[np.ndarray, np.ndarray | None]:
    """What is seen of the hidden regions: nothing, the region itself, or a region of another image.

    Returns:
        bool [K], of which nothing is seen; and what is seen of the others, float [K, F], None where that is their own.
    """
    fate_K = rng.random(len(hidden_K))
    zeroed_K = hidden_K & (fate_K >= config.keep + config.replace)
    if features_KF is None or not config.replace:
        return zeroed_K, None
    shown_KF = features_KF.copy()
    for place in np.flatnonzero(hidden_K & ~zeroed_K & (fate_K >= config.keep)):
        other_F = elsewhere()
        zeroed_K[place] = other_F is None
        shown_KF[place] = shown_KF[place] if other_F is None else other_F
    return zeroed_K, shown_KF


def overlaps(boxes_K4: np.ndarray) -> np.ndarray:
    """Intersection over union of all pairs, float [K, K]."""
    low, high = np.maximum(boxes_K4[:, None, :2], boxes_K4[:, :2]), np.minimum(boxes_K4[:, None, 2:], boxes_K4[:, 2:])
    shared = (high - low).clip(0).prod(-1)
    area = (boxes_K4[:, 2:] - boxes_K4[:, :2]).prod(-1)
    return shared / np.maximum(area[:, None] + area - shared, 1e-12)


def stack_rows(rows: list[np.ndarray], fill: float | bool = 0) -> np.ndarray:
    """Arrays of different length [n, ...] as one [rows, longest n, ...], filled at the end."""
    longest = max(len(row) for row in rows)
    stacked = np.full((len(rows), longest, *rows[0].shape[1:]), fill, rows[0].dtype)
    for target, row in zip(stacked, rows, strict=True):
        target[: len(row)] = row
    return stacked


def collate_regions(items: list[Regions]) -> dict[str, Tensor]:
    """The fields of a batch that regions fill, padded to the largest number of regions."""
    widest = max(item.attributes_KA.shape[1] for item in items)
    attributes = [
        np.pad(item.attributes_KA, ((0, 0), (0, widest - item.attributes_KA.shape[1])), constant_values=UNKNOWN)
        for item in items
    ]
    arrays: dict[str, list[np.ndarray] | None] = {
        "region_boxes_BK4": [item.boxes_K4 for item in items],
        "region_mask_BK": [np.ones(len(item), bool) for item in items],
        "region_labels_BK": [item.labels_K for item in items],
        "region_attributes_BKA": attributes,
        "masked_regions_BK": [item.hidden_K for item in items],
        "region_features_BKF": _present([item.features_KF for item in items]),
        "region_probabilities_BKC": _present([item.probabilities_KC for item in items]),
        "zeroed_regions_BK": _present([item.zeroed_K for item in items]),
        "shown_features_BKF": _present([item.shown_KF for item in items]),
    }
    fills = {"region_labels_BK": UNKNOWN, "region_attributes_BKA": UNKNOWN}
    there = {name: rows for name, rows in arrays.items() if rows is not None}
    return {name: torch.from_numpy(stack_rows(rows, fills.get(name, 0))) for name, rows in there.items()}


def _present(rows: list[np.ndarray | None]) -> list[np.ndarray] | None:
    there = [row for row in rows if row is not None]
    return there if len(there) == len(rows) else None


def _probabilities(sample: Sample, chosen: np.ndarray, labels_K: np.ndarray, classes: int) -> np.ndarray:
    if sample.region_probabilities is not None:
        found = sample.region_probabilities.shape[1]
        if found != classes:
            raise UserError(f"`data.regions.classes` (={classes}) must be that of the data: {sample.key} has {found}")
        return sample.region_probabilities[chosen].astype(np.float32)
    one_hot_KC = np.zeros((len(labels_K), classes), np.float32)
    known = np.flatnonzero((labels_K >= 0) & (labels_K < classes))
    one_hot_KC[known, labels_K[known]] = 1
    return one_hot_KC
