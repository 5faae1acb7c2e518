"""Named filters: what a corpus must be like, and for each sample or caption that is not, the name of the reason.

    Filters (typed) -> judge(sample) -> Verdict(reason, captions kept, signatures) -> shards.scan decides on duplicates

The reasons are the names of the filters, and before them those of `shards.soundness`, which hold without any filter.
A filter on captions drops captions; a sample that has none left is rejected for the reason of its first. Filters run in
the order of `Filters`; the first that a sample fails is its reason.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shards.decode import decode_image, sample_size
from shards.duplicates import Signature, exact_signature, near_signature
from shards.errors import DamagedSample, UserError, nearest
from shards.sample import Sample, record_json
from shards.soundness import unsound_caption, unsound_picture, unsound_record


class Filters(BaseModel):
    """What is asked of a corpus; a filter that is not given asks nothing.

    Attributes:
        max_nsfw, max_watermark, min_similarity: Bounds on a number in the metadata, named by `*_field` (the names that
            LAION and img2dataset write). A sample without the number passes, and is counted as unscored.
        languages: ISO 639-1 codes; a caption stays where the chance that it is in one of them is at least `LIKELY`.
        min_short_side: Pixels.
        max_aspect: Longer side over shorter.
        decodable: The whole image can be decoded, not only its header.
        exact_duplicates: The first of samples with equal image bytes is kept.
        perceptual_distance: The first of images whose 128-bit difference hashes differ in at most so many bits is kept.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_nsfw: float | None = None
    max_watermark: float | None = None
    min_similarity: float | None = None
    nsfw_field: str = "punsafe"
    watermark_field: str = "pwatermark"
    similarity_field: str = "similarity"
    min_words: int | None = Field(None, ge=1)
    min_characters: int | None = Field(None, ge=1)
    max_characters: int | None = Field(None, ge=1)
    languages: tuple[str, ...] = ()
    min_short_side: int | None = Field(None, ge=1)
    max_aspect: float | None = Field(None, ge=1)
    decodable: bool = False
    exact_duplicates: bool = False
    perceptual_distance: int | None = Field(None, ge=0, le=31)

    @property
    def settings(self) -> dict[str, Any]:
        """What differs from asking nothing, as JSON values."""
        return self.model_dump(mode="json", exclude_defaults=True)


PRESETS = {
    # DataComp's basic filtering (Gadre et al., 2023): English, more than one word, more than five characters, ...
    "datacomp": Filters(
        languages=("en",), min_words=2, min_characters=6, min_short_side=200, max_aspect=3.0, decodable=True
    ),
}
LIKELY = 0.05
"""Two words rarely settle a language: of short English names 88 % pass, where 75 % are likeliest English; of short
captions in five other European languages 3 % pass, and as many are likeliest English."""

_BOUNDS = {
    "max_nsfw": ("nsfw_field", 1),
    "max_watermark": ("watermark_field", 1),
    "min_similarity": ("similarity_field", -1),
}
"""Filter -> where its number stands, and the sign that makes it a maximum."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the filters say of one sample.

    Attributes:
        reason: The filter that rejects it, empty where it is kept (so far: duplicates are found by comparing samples).
        captions: Places of the captions that are kept.
        dropped: Captions dropped, by filter; also of samples that are rejected.
        unscored: Filters whose number the metadata lacks.
    """

    reason: str
    captions: tuple[int, ...] = ()
    dropped: Counter[str] = field(default_factory=Counter)
    unscored: tuple[str, ...] = ()
    exact: Signature | None = None
    near: Signature | None = None


def parse_filters(preset: str | None, settings: list[str]) -> Filters:
    """A preset, a YAML file of filters, or nothing, with `name=value` settings on top; `languages=en,de` is a list.

    Raises:
        UserError: an unknown preset or filter, or a value that it cannot have.
    """
    values = _preset(preset) if preset is not None else {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"`filter` (={setting}) must be NAME=VALUE")
        values[name] = value.split(",") if name == "languages" else value
    for name in values:
        if name not in Filters.model_fields:
            known = Filters.model_fields
            raise UserError(f"`filter` (={name}) must be one of {', '.join(known)}{nearest(name, known)}")
    try:
        filters = Filters.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise UserError(f"`filter` (={name}={values[name]}) is refused: {first['msg'].lower()}") from None
    _check_languages(filters.languages)
    return filters


def _preset(name: str) -> dict[str, Any]:
    if Path(name).suffix not in (".yaml", ".yml"):
        if name not in PRESETS:
            raise UserError(f"`preset` (={name}) must be a .yaml file or {', '.join(PRESETS)}{nearest(name, PRESETS)}")
        return PRESETS[name].settings
    try:
        values = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"`preset` (={name}) cannot be read: {(error.strerror or str(error)).lower()}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"`preset` (={name}) is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"`preset` (={name}) must hold lines of NAME: VALUE")
    return values


def _check_languages(languages: tuple[str, ...]) -> None:
    """Also where the library is missing, so that it is said before anything is written."""
    known = _identifier().nb_classes if languages else ()
    for language in languages:
        if language not in known:
            raise UserError(f"`languages` (={language}) must be ISO 639-1 codes such as en, de or zh")


def judge(sample: Sample, filters: Filters) -> Verdict:
    """All filters but the comparison with other samples. The result depends on the arguments alone."""
    scored, unscored = _judge_scores(sample, filters)
    faults = [caption_fault(caption, filters) for caption in sample.captions]
    kept = tuple(i for i, fault in enumerate(faults) if not fault)
    dropped = Counter(fault for fault in faults if fault)
    unkept = "" if kept else faults[0] if faults else "no_caption"
    reason = unsound_picture(sample) or scored or unkept
    reason = reason or unsound_record(with_captions(sample, kept)) or _judge_image(sample, filters)
    if reason:
        return Verdict(reason, kept, dropped, unscored)
    exact = exact_signature(sample.image or record_json(sample)) if filters.exact_duplicates else None
    near = near_signature(sample.image) if filters.perceptual_distance is not None else None
    return Verdict("", kept, dropped, unscored, exact, near)


def with_captions(sample: Sample, kept: tuple[int, ...]) -> Sample:
    """The captions at the places `kept`, and their ids where the metadata has one for each."""
    if len(kept) == len(sample.captions):
        return sample
    metadata = dict(sample.metadata)
    ids = metadata.get("sentids")
    if isinstance(ids, list | tuple) and len(ids) == len(sample.captions):
        metadata["sentids"] = [ids[i] for i in kept]
    return replace(sample, captions=tuple(sample.captions[i] for i in kept), metadata=metadata)


def _judge_scores(sample: Sample, filters: Filters) -> tuple[str, tuple[str, ...]]:
    reason, unscored = "", []
    for name, (where, sign) in _BOUNDS.items():
        bound = getattr(filters, name)
        if bound is None:
            continue
        score = sample.metadata.get(getattr(filters, where))
        if not isinstance(score, int | float):
            unscored.append(name)
        elif not reason and not sign * score <= sign * bound:  # Written so that NaN fails.
            reason = name
    return reason, tuple(unscored)


def caption_fault(caption: str, filters: Filters) -> str:
    """The name of the first filter that drops the caption, or an empty string."""
    if unsound := unsound_caption(caption):
        return unsound
    if filters.min_words is not None and len(caption.split()) < filters.min_words:
        return "min_words"
    if filters.min_characters is not None and len(caption.strip()) < filters.min_characters:
        return "min_characters"
    if filters.max_characters is not None and len(caption.strip()) > filters.max_characters:
        return "max_characters"
    if filters.languages and language_probability(caption, filters.languages) < LIKELY:
        return "languages"
    return ""


def language_probability(caption: str, languages: tuple[str, ...]) -> float:
    """How likely the caption is in one of `languages`, by the same classifier as `language_of`."""
    return float(sum(probability for language, probability in _identifier().rank(caption) if language in languages))


def language_of(caption: str) -> str:
    """ISO 639-1 code of the likeliest language (langid.py's method, Lui & Baldwin 2012, in py3langid)."""
    return str(_identifier().classify(caption)[0])


@lru_cache(maxsize=1)
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise UserError("`languages` needs the library py3langid: pip install 'duostream[filters]'") from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _judge_image(sample: Sample, filters: Filters) -> str:
    """Of an image whose header is sound."""
    sized = filters.min_short_side is not None or filters.max_aspect is not None
    width, height = sample_size(sample) if sized else (0, 0)
    if filters.min_short_side is not None and min(width, height) < filters.min_short_side:
        return "min_short_side"
    if filters.max_aspect is not None and max(width, height) > filters.max_aspect * min(width, height):
        return "max_aspect"
    if filters.decodable and sample.extension:
        try:
            decode_image(sample.image, sample.extension)
        except DamagedSample:
            return "decodable"
    return ""
