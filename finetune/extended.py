"""COCO with its missing positives: ECCV-Caption (Chun et al., arXiv:2204.03359) and CrissCrossed Captions
(Parekh et al., arXiv:2004.15020).

COCO calls a text right for one image only, though it may describe many. Both ground truths come with the package
`eccv_caption` (the extra `eccv`); they are read as files, the figures are computed here.

The gallery is what the ground truth knows: the 5,000 images of the Karpathy test split and the first five texts of
each. Where all captions were ranked, the sixth ones are taken out again. ECCV-Caption also names two texts that are not
in the split; nobody can find them, and they count as missed, as in the package. Figures are in percent and pessimistic.
"""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.precision import first_place, map_at_r, places, r_precision
from finetune.ranking import Ranked
from finetune.recall import KS, Indices, chunks
from finetune.results import Extended, ExtendedDirection
from finetune.retrieval import RetrievalSet
from finetune.score import Similarity

PACKAGE = "eccv_caption"
NEVER = 10**9  # the place of what is not in the gallery
Truth = Mapping[int, Sequence[int]]


@dataclass(frozen=True)
class GroundTruth:
    """Positives by COCO's image and caption ids: {query: gallery items}, for both directions of both sets."""

    eccv_i2t: Truth
    eccv_t2i: Truth
    cxc_i2t: Truth
    cxc_t2i: Truth
    images: frozenset[int]
    texts: frozenset[int]


def installed() -> bool:
    """Whether the package with the ground truths is there."""
    return importlib.util.find_spec(PACKAGE) is not None


def load_ground_truth() -> GroundTruth:
    """Reads the files of the installed package, without importing it: its import warns and needs nothing of ours."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "data"
    eccv_i2t, eccv_t2i, cxc_i2t, cxc_t2i = (
        _read(folder / f"{name}_{way}.json")
        for name in ("eccv", "cxc")
        for way in ("image_to_caption", "caption_to_image")
    )
    texts = np.load(folder / "coco_test_ids.npy", allow_pickle=False)
    return GroundTruth(eccv_i2t, eccv_t2i, cxc_i2t, cxc_t2i, frozenset(cxc_i2t), frozenset(texts.tolist()))


def fits(data: RetrievalSet, truth: GroundTruth) -> bool:
    """Whether the set is the one that the ground truth is about, and says which image and text is which."""
    images, texts = coco_ids(data)
    return set(images) == truth.images and len(images) == len(truth.images) and truth.texts <= set(texts)


def coco_ids(data: RetrievalSet) -> tuple[list[int], list[int]]:
    """COCO's ids of the images and of the texts, -1 where the source names none."""
    images = [int(entry.get("cocoid", -1)) for entry in data.metadata]
    texts: list[int] = []
    for image, entry in enumerate(data.metadata):
        own = data.texts_of(image)
        named = list(entry.get("sentids", []))[: own.stop - own.start]
        texts += named + [-1] * (own.stop - own.start - len(named))
    return images, texts


def extended(data: RetrievalSet, truth: GroundTruth, similarity: Similarity, i2t: Ranked, t2i: Ranked) -> Extended:
    """Figures of a ranking of the whole set (one fold)."""
    images, texts = coco_ids(data)
    return Extended(
        i2t=_direction(similarity, i2t, images, texts, (truth.eccv_i2t, truth.cxc_i2t), truth.texts),
        t2i=_direction(similarity, t2i, texts, images, (truth.eccv_t2i, truth.cxc_t2i), truth.images),
    )


def _direction(
    similarity: Similarity,
    ranked: Ranked,
    queries: Sequence[int],
    gallery: Sequence[int],
    truths: tuple[Truth, Truth],
    known: frozenset[int],
) -> ExtendedDirection:
    """`known` is the gallery that the ground truth is about."""
    kept = np.array([place for place, item in enumerate(gallery) if item in known])
    column = {gallery[place]: number for number, place in enumerate(kept)}
    eccv, cxc = ({q: np.array([column[i] for i in truth[q] if i in column]) for q in truth} for truth in truths)
    eccv_places: list[Indices] = []
    cxc_places: list[int] = []
    first_QG = ranked.side.scores(similarity)
    for rows in chunks(*first_QG.shape):
        block = ranked.ordered(first_QG, rows)[:, kept]
        for scores_G, query in zip(block, queries[rows], strict=True):
            if query in eccv:
                seen = places(scores_G, eccv[query])
                lost = len(truths[0][query]) - len(seen)
                eccv_places.append(np.pad(seen, (0, lost), constant_values=NEVER))
            if query in cxc:
                cxc_places.append(first_place(scores_G, cxc[query]))
    cxc_r1, cxc_r5, cxc_r10 = (100 * float(np.mean([place <= k for place in cxc_places])) for k in KS)
    return ExtendedDirection(
        eccv_map_at_r=100 * float(np.mean([map_at_r(p) for p in eccv_places])),
        eccv_r_precision=100 * float(np.mean([r_precision(p) for p in eccv_places])),
        eccv_r1=100 * float(np.mean([p[0] == 1 for p in eccv_places])),
        cxc_r1=cxc_r1,
        cxc_r5=cxc_r5,
        cxc_r10=cxc_r10,
    )


def _read(path: Path) -> dict[int, list[int]]:
    values = json.loads(path.read_text())
    return {int(query): [int(item) for item in items] for query, items in values.items()}
