"""Generated scenes: pure functions of (seed, split, i), splits that share nothing, and captions that are true."""

import itertools
import re

import numpy as np
import pytest

from shards.decode import decode_image
from shards.errors import UserError
from shards.sources.scenes import ScenesSource
from shards.sources.scenes_layout import SHARES
from shards.sources.scenes_render import COLOURS, SHAPES


def test_sample_is_a_pure_function_of_seed_split_and_index() -> None:
    short, long = ScenesSource(5, 3, "train"), ScenesSource(500, 3, "train")
    assert [short[i] for i in range(5)] == [long[i] for i in range(5)]
    assert ScenesSource(5, 4, "train")[0] != short[0]
    assert short.fingerprint() != long.fingerprint() != ScenesSource(500, 4, "train").fingerprint()


def test_splits_never_share_a_description() -> None:
    """By construction: the hash of the description names the split. Checked over several seeds."""
    found = {
        split: {ScenesSource(300, seed, split)[i].metadata["description"] for seed in (0, 1) for i in range(300)}
        for split in SHARES
    }
    for one, other in itertools.combinations(SHARES, 2):
        assert not found[one] & found[other]
    assert all(len(descriptions) > 590 for descriptions in found.values())


def test_captions_name_every_object() -> None:
    synonyms = {"disc": "circle", "box": "square", "plus sign": "cross", "hoop": "ring", "rhombus": "diamond"}
    for i in range(300):
        sample = ScenesSource(300, 0, "val")[i]
        assert len(sample.captions) == 5 == len(set(sample.captions))
        for caption in sample.captions:
            assert len(caption.split()) <= 30
            assert caption == caption.lower()
            text = caption.replace("violet", "purple")
            for synonym, word in synonyms.items():
                text = text.replace(synonym, word)
            for region in sample.regions:
                assert region.label in text, caption
                assert re.search(rf"\b{region.attributes[0]}\b", text), caption


def test_left_and_above_in_captions_agree_with_boxes() -> None:
    """ "A ... to the left of B" must hold for the boxes of A and B; the inverse for `right`, `above`, `below`."""
    checks = {"to the left of": (0, 1), "to the right of": (0, -1), "above": (1, 1), "below": (1, -1)}
    seen = 0
    for i in range(300):
        sample = ScenesSource(300, 0, "train")[i]
        if len(sample.regions) != 2:
            continue
        for caption, (words, (axis, sign)) in itertools.product(sample.captions, checks.items()):
            named = [_find(sample.regions, part) for part in caption.split(f" {words} ")]
            if len(named) == 2 and None not in named:
                first, second = (sample.regions[n].box for n in named if n is not None)
                assert sign * (second[axis] - first[axis]) > 0, caption
                seen += 1
    assert seen > 100


def _find(regions: tuple, text: str) -> int | None:  # type: ignore[type-arg]
    found = [i for i, r in enumerate(regions) if r.attributes[0] in text and r.label in text]
    return found[0] if len(found) == 1 else None


def test_boxes_contain_the_colour_drawn() -> None:
    for i in range(100):
        sample = ScenesSource(100, 1, "train")[i]
        pixels = decode_image(sample.image, "jpg").astype(int)
        for region in sample.regions:
            left, top, right, bottom = (int(v) for v in region.box)
            inside = pixels[top:bottom, left:right].reshape(-1, 3)
            close = np.abs(inside - np.array(COLOURS[region.attributes[0]])).max(1) < 60
            assert close.mean() > 0.1, (i, region, close.mean())


@pytest.mark.parametrize("size", [48, 49, 64, 65, 71, 96, 224])
def test_objects_lie_inside_and_apart(size: int) -> None:
    source = ScenesSource(150, 0, "train", size)
    for i in range(150):
        sample = source[i]
        assert decode_image(sample.image, "jpg").shape == (size, size, 3)
        boxes = [region.box for region in sample.regions]
        assert all(0 <= b[0] < b[2] <= size and 0 <= b[1] < b[3] <= size for b in boxes)
        for a, b in itertools.combinations(boxes, 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_relations_come_in_pairs_and_tags_cover_labels() -> None:
    sample = ScenesSource(1, 0, "train")[0]
    relations = {(r.subject, r.predicate, r.object) for r in sample.relations}
    inverse = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert relations == {(o, inverse[p], s) for s, p, o in relations} != set()
    assert set(sample.tags) == {w for r in sample.regions for w in (r.label, r.attributes[0])}
    assert set(sample.tags) <= {*SHAPES, *COLOURS}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0, "train"), "`samples` (=0) must be at least 1"),
        ((1, -1, "train"), "`seed` (=-1) must be at least 0 and less than 2**64"),
        ((1, 0, "dev"), "`split` (=dev) must be one of train, val, test"),
        ((1, 0, "train", 8), "`size` (=8) must be from 48 to 1024"),
    ],
)
def test_refusals(arguments: tuple[int, int, str], message: str) -> None:
    with pytest.raises(UserError) as error:
        ScenesSource(*arguments)
    assert str(error.value) == message
