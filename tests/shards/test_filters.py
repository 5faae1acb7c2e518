"""Each filter against a sample made for it, in words and numbers that a reader can check."""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from shards.duplicates import near_repeated, near_signature, repeated
from shards.errors import UserError
from shards.filters import (
    LIKELY,
    PRESETS,
    Filters,
    caption_fault,
    judge,
    language_of,
    language_probability,
    parse_filters,
)
from shards.sample import Sample
from tests.shards.conftest import png

CAPTIONS = ("a red dog on grass", "dog", "ein roter Hund läuft über die Wiese")


def sample(image: bytes = b"", captions: tuple[str, ...] = CAPTIONS, **metadata: Any) -> Sample:
    return Sample("key", image or png(7, 60, 20), "png", captions, metadata=metadata)


@pytest.mark.parametrize(
    ("filters", "reason", "kept"),
    [
        ({}, "", (0, 1, 2)),
        ({"min_words": 2}, "", (0, 2)),
        ({"min_words": 6}, "", (2,)),
        ({"min_words": 8}, "min_words", ()),
        ({"min_characters": 4}, "", (0, 2)),
        ({"max_characters": 18}, "", (0, 1)),
        ({"languages": ("de",), "min_words": 2}, "", (2,)),
        ({"languages": ("fr",), "min_words": 2}, "languages", ()),
        ({"min_short_side": 20}, "", (0, 1, 2)),
        ({"min_short_side": 21}, "min_short_side", (0, 1, 2)),
        ({"max_aspect": 3.0}, "", (0, 1, 2)),
        ({"max_aspect": 2.99}, "max_aspect", (0, 1, 2)),
        ({"max_nsfw": 0.5}, "", (0, 1, 2)),
        ({"max_nsfw": 0.1}, "max_nsfw", (0, 1, 2)),
        ({"max_watermark": 0.9, "watermark_field": "w"}, "max_watermark", (0, 1, 2)),
        ({"min_similarity": 0.3}, "", (0, 1, 2)),
        ({"min_similarity": 0.31}, "min_similarity", (0, 1, 2)),
        ({"decodable": True}, "", (0, 1, 2)),
        ({"min_similarity": 0.31, "max_aspect": 1}, "min_similarity", (0, 1, 2)),
    ],
)
def test_reasons(filters: dict[str, Any], reason: str, kept: tuple[int, ...]) -> None:
    verdict = judge(sample(punsafe=0.2, w=0.95, similarity=0.3), Filters(**filters))
    assert (verdict.reason, verdict.captions) == (reason, kept)
    assert sum(verdict.dropped.values()) == 3 - len(kept)


def test_a_number_that_is_missing_or_none_is_not_zero() -> None:
    filters = Filters(max_nsfw=0.5, min_similarity=0.3)
    assert judge(sample(similarity=0.4), filters).unscored == ("max_nsfw",)
    assert judge(sample(similarity=None, punsafe="UNLIKELY"), filters).unscored == ("max_nsfw", "min_similarity")
    assert judge(sample(similarity=float("nan"), punsafe=0.1), filters).reason == "min_similarity"


def test_damaged_images() -> None:
    whole = png(7, 60, 20)
    for filters in (Filters(), Filters(decodable=True, min_short_side=2)):
        assert judge(sample(b"no image"), filters).reason == "image_unreadable"
    cut = sample(whole[: len(whole) // 2])
    assert judge(cut, Filters(decodable=True)).reason == "decodable"
    assert judge(cut, Filters(min_short_side=2)).reason == ""


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "A man riding a wave on top of a surfboard."),
        ("de", "Ein Mann reitet auf einem Surfbrett auf einer Welle."),
        ("fr", "Un homme surfe sur une vague avec sa planche."),
        ("ja", "サーフボードに乗って波に乗る男性"),
        ("ru", "Мужчина катается на волне на доске для серфинга"),
    ],
)
def test_languages(language: str, text: str) -> None:
    assert language_of(text) == language


def test_english_captions_of_coco_are_english(test_data: Path) -> None:
    import json

    content = json.loads((test_data / "annotations/coco_test5k_official_format.json").read_bytes())
    captions = [annotation["caption"] for annotation in content["annotations"][::100]]
    assert len(captions) > 200
    assert np.mean([language_of(caption) == "en" for caption in captions]) > 0.99  # 1.0 was measured.
    assert all(language_probability(caption, ("en",)) >= LIKELY for caption in captions)


def test_short_captions_of_other_languages_are_dropped() -> None:
    texts = ["ein kleiner roter Hund", "deux enfants à la plage", "bolso de cuero", "due bambini in spiaggia", "赤い犬"]
    assert [caption_fault(text, Filters(languages=("en",))) for text in texts] == ["languages"] * 5
    assert [caption_fault(text, Filters(languages=("de", "fr", "es", "it", "ja"))) for text in texts] == [""] * 5
    assert caption_fault("alarm clock", Filters(languages=("en",))) == ""


@pytest.mark.parametrize(
    ("preset", "given", "message"),
    [
        ("datcomp", [], r"`preset` (=datcomp) must be a .yaml file or datacomp; did you mean `datacomp`?"),
        ("none.yaml", [], "`preset` (=none.yaml) cannot be read: no such file or directory"),
        (None, ["min_word=2"], "`filter` (=min_word) must be one of max_nsfw, max_watermark, min_similarity, "),
        (None, ["min_words"], "`filter` (=min_words) must be NAME=VALUE"),
        (None, ["min_words=0"], "`filter` (=min_words=0) is refused: input should be greater than or equal to 1"),
        (None, ["languages=english"], "`languages` (=english) must be ISO 639-1 codes such as en, de or zh"),
    ],
)
def test_refusals(preset: str | None, given: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_filters(preset, given)
    assert str(error.value).startswith(message)


def test_settings_go_over_the_preset() -> None:
    filters = parse_filters("datacomp", ["min_words=3", "exact_duplicates=true", "languages=en,de"])
    assert filters == PRESETS["datacomp"].model_copy(
        update={"min_words": 3, "exact_duplicates": True, "languages": ("en", "de")}
    )
    assert parse_filters(None, []).settings == {}


def test_filters_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "filters.yaml"
    file.write_text("min_words: 3\nlanguages: [en, de]\nmax_aspect: 3\n")
    assert parse_filters(str(file), ["max_aspect=2"]) == Filters(min_words=3, languages=("en", "de"), max_aspect=2)
    for content, message in (
        ("- a", "must hold lines of NAME: VALUE"),
        ("a: [", "is not YAML"),
        ("min_word: 3", r"`filter` \(=min_word\) must be one of .*; did you mean `min_words`\?"),
        ("min_words: many", r"`filter` \(=min_words=many\) is refused: input should be a valid integer"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=message):
            parse_filters(str(file), [])


def test_datacomp_preset_is_the_published_rule() -> None:
    """English, more than one word, more than five characters, short side at least 200, aspect at most 3."""
    preset = PRESETS["datacomp"]
    for size, caption, reason in [
        ((600, 200), "a red dog", ""),
        ((600, 199), "a red dog", "min_short_side"),
        ((601, 200), "a red dog", "max_aspect"),
        ((200, 601), "a red dog", "max_aspect"),
        ((300, 300), "dogs' ", "min_words"),
        ((300, 300), "a dog", "min_characters"),
        ((300, 300), "ein roter Hund auf der Wiese", "languages"),
    ]:
        assert judge(sample(png(1, *size), (caption,)), preset).reason == reason, (size, caption)


def slow_near(rows: list[tuple[int, int]], distance: int) -> list[bool]:
    kept: list[tuple[int, int]] = []
    result = []
    for row in rows:
        near = any((row[0] ^ other[0]).bit_count() + (row[1] ^ other[1]).bit_count() <= distance for other in kept)
        result.append(near)
        if not near:
            kept.append(row)
    return result


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.integers(0, 31))
def test_near_duplicates_against_comparing_all(seed: int, distance: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 2**64, size=(40, 2), dtype=np.uint64)
    copies = rows[rng.integers(0, 40, size=60)].copy()
    for row in copies:
        for bit in rng.integers(0, 128, size=rng.integers(0, distance + 3)):
            row[bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    everything = np.concatenate([rows, copies])[rng.permutation(100)]
    expected = slow_near([(int(a), int(b)) for a, b in everything], distance)
    assert near_repeated(everything, distance).tolist() == expected
    assert repeated(everything).tolist() == slow_near([(int(a), int(b)) for a, b in everything], 0)


def test_no_rows() -> None:
    nothing = np.empty((0, 2), dtype=np.uint64)
    assert near_repeated(nothing, 4).tolist() == repeated(nothing).tolist() == []


def distance_between(one: bytes, other: bytes) -> int:
    first, second = near_signature(one), near_signature(other)
    assert first is not None
    assert second is not None
    return (first[0] ^ second[0]).bit_count() + (first[1] ^ second[1]).bit_count()


def test_a_picture_is_near_its_copies_and_far_from_others(test_data: Path) -> None:
    """Real pictures on white, re-encoded at three times the size and JPEG quality 60: at most 15 bits were measured."""
    files = sorted((test_data / "emoji/images/noto").rglob("*.png"))[:60]
    assert len(files) == 60
    images = [file.read_bytes() for file in files]
    distances = [distance_between(image, _reencoded(image)) for image in images]
    assert max(distances) <= 15
    assert np.median(distances) <= 5
    others = Counter(distance_between(a, b) <= 8 for a, b in zip(images, images[7:], strict=False))
    assert others[False] > 0.9 * sum(others.values())


def _reencoded(image: bytes) -> bytes:
    with Image.open(io.BytesIO(image)) as opened:
        rgba = opened.convert("RGBA").resize((216, 216), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB").save(buffer, "jpeg", quality=60)
    return buffer.getvalue()


def test_plain_images_are_not_compared() -> None:
    """Their hash would be noise, and all white ground would count as one picture."""
    assert near_signature(png(255, 64, 64)) is None
    assert near_signature(b"no image") is None
