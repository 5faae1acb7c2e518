"""Samples to batches: caption choice, tokens, masking, pixels; all of it in the loader's workers."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pretrain.batch import Batch, Draw
from pretrain.config import PretrainConfig
from pretrain.data.classes import check_classes
from pretrain.data.labels import RegionVocabulary
from pretrain.data.masking import IGNORE, choose, mask_tokens
from pretrain.data.phrases import Phrase, draw_phrase
from pretrain.data.pixels import Picture, Pictures
from pretrain.data.pollution import Parts, draw_other, pollute
from pretrain.data.regions import Regions, check_regions, collate_regions, read_regions, stack_rows
from pretrain.data.tokenizer import Text, Tokenizer
from shards.errors import UserError
from shards.sample import Identity, Sample
from shards.sources.base import Source
from shards.stream import StreamedSample


class Prepared(NamedTuple):
    """One pair, ready to be stacked."""

    picture: Picture | None
    text: Text
    masked_ids_L: np.ndarray
    masked_labels_L: np.ndarray
    group: int
    draws_K: np.ndarray
    regions: Regions | None
    pollution: int
    phrase: Phrase | None


def check_sample(config: PretrainConfig, sample: Sample) -> None:
    """Refuses a configuration that asks for what the sample does not have.

    Raises:
        UserError: `data.group_by`, `data.second`, `data.regions` or a model of pixels without it.
    """
    key = config.data.group_by
    if key is not None and key not in sample.metadata:
        raise UserError(f"`data.group_by` (={key}) is not in the metadata of sample {sample.key}")
    if not sample.extension and not config.model.vision.region:
        raise UserError(f"`model.vision` must read regions, since sample {sample.key} has those and no image")
    if config.data.second == "tags" and not sample.tags:
        raise UserError(f"`data.second` (=tags) needs tags, and sample {sample.key} has none")
    if config.objectives.phrases and not sample.regions:
        raise UserError(f"`{config.objectives.phrases}` needs regions, and sample {sample.key} has none")
    if config.data.regions:
        region = config.model.vision.region
        check_regions(sample, region.features if region else None)


def check_inputs(config: PretrainConfig, tokenizer: Tokenizer, sample: Sample) -> None:
    """Refuses what the workers would, before there are any.

    Raises:
        UserError: what `sample` does not have, a tokenizer that cannot hide words, a file of labels that cannot be
            read, or classes that are not those of the data.
    """
    check_sample(config, sample)
    check_classes(config, Preparation(config, tokenizer).vocabulary, sample)
    if config.objectives.mlm:
        _ = tokenizer.mask_id


@dataclass(frozen=True)
class Preparation:
    """Turns streamed samples into one `Batch`; picklable, so that workers can carry it.

    `sources` are where other images (`data.augment.blend`), their texts (`objectives.pollution`) and their regions
    (`data.regions.replace`) come from; without them none is blended, polluted or replaced.
    """

    config: PretrainConfig
    tokenizer: Tokenizer
    sources: Sequence[Source] = ()

    @cached_property
    def vocabulary(self) -> RegionVocabulary:
        """The numbers of region names; none has one without `data.regions.labels`."""
        regions = self.config.data.regions
        return RegionVocabulary.read(regions.labels) if regions and regions.labels else RegionVocabulary((), ())

    @cached_property
    def pictures(self) -> Pictures:
        """What reads images, and remembers some."""
        data = self.config.data
        shape = data.image_shape or self.config.model.image_size
        return Pictures(data.augment, shape, int(data.keep_gigabytes * 1e9), self.sources, self.group)

    def transform(self, item: StreamedSample) -> Prepared:
        sample, rng = item.sample, item.rng()
        check_sample(self.config, sample)
        parts = self._parts(item, rng)
        text = self._text(parts, rng)
        masked_L, labels_L = self._mask(text, rng)
        picture = self._picture(item.identity, sample, rng)
        draws_K = rng.random(len(Draw))
        group = self.group(item.identity, sample)
        regions = self._regions(sample, group, rng)
        phrase = self._phrase(sample, rng)
        return Prepared(picture, text, masked_L, labels_L, group, draws_K, regions, parts.label, phrase)

    def collate(self, items: list[Prepared]) -> Batch:
        token_ids_BL, token_mask_BL = self.tokenizer.pad([item.text.ids_L for item in items])
        regions = [item.regions for item in items if item.regions is not None]
        phrases = [item.phrase for item in items if item.phrase is not None]
        pixels_BHWC, sizes_B2 = self.pictures.stack([item.picture for item in items if item.picture is not None])
        return Batch(
            pixels_BHWC=pixels_BHWC,
            image_sizes_B2=sizes_B2,
            token_ids_BL=token_ids_BL,
            token_mask_BL=token_mask_BL,
            segments_BL=self._segments([item.text.segments_L for item in items]),
            masked_ids_BL=self.tokenizer.pad([item.masked_ids_L for item in items])[0],
            masked_labels_BL=torch.from_numpy(stack_rows([item.masked_labels_L for item in items], IGNORE)),
            group_B=torch.tensor([item.group for item in items]),
            pollution_B=torch.tensor([item.pollution for item in items]) if self._pollutes else None,
            draws_BK=torch.from_numpy(np.stack([item.draws_K for item in items])),
            **(collate_regions(regions) if regions else {}),
            **(self._collate_phrases(phrases) if phrases else {}),
        )

    def _phrase(self, sample: Sample, rng: np.random.Generator) -> Phrase | None:
        if self.config.objectives.phrases is None:
            return None
        words, box_4 = draw_phrase(sample, rng)
        text = self.tokenizer.encode(words, self.config.data.max_tokens)
        return Phrase(text.ids_L, *self._mask(text, rng), _number(words), box_4)

    def _collate_phrases(self, phrases: list[Phrase]) -> dict[str, Tensor]:
        ids_BP, mask_BP = self.tokenizer.pad([phrase.ids_P for phrase in phrases])
        return {
            "phrase_ids_BP": ids_BP,
            "phrase_mask_BP": mask_BP,
            "phrase_masked_ids_BP": self.tokenizer.pad([phrase.masked_ids_P for phrase in phrases])[0],
            "phrase_labels_BP": torch.from_numpy(stack_rows([phrase.labels_P for phrase in phrases], IGNORE)),
            "phrase_group_B": torch.tensor([phrase.group for phrase in phrases]),
            "phrase_box_B4": torch.from_numpy(np.stack([phrase.box_4 for phrase in phrases])),
        }

    @property
    def _pollutes(self) -> bool:
        return self.config.objectives.pollution is not None

    def _parts(self, item: StreamedSample, rng: np.random.Generator) -> Parts:
        """Whose words make the text: the sample's own, unless it is polluted."""
        sample, config = item.sample, self.config.objectives.pollution
        if config is None or not self.sources:
            return Parts(sample, sample, 0)
        own = self.group(item.identity, sample)
        return pollute(sample, config, lambda: draw_other(self.sources, self.group, own, rng), rng)

    def _text(self, parts: Parts, rng: np.random.Generator) -> Text:
        caption = self._caption(parts.caption, rng)
        return self.tokenizer.encode(caption, self.config.data.max_tokens, self._second(parts.second, caption, rng))

    def _second(self, sample: Sample, caption: str, rng: np.random.Generator) -> str | None:
        match self.config.data.second:
            case "tags":
                return " ".join(sample.tags[i] for i in rng.permutation(len(sample.tags)))
            case "caption":
                others = [text for text in sample.captions if text != caption] or [caption]
                return others[rng.integers(len(others))]
        return None

    def _segments(self, segments: list[np.ndarray]) -> Tensor | None:
        return torch.from_numpy(stack_rows(segments)) if self.config.data.second else None

    def _picture(self, identity: Identity, sample: Sample, rng: np.random.Generator) -> Picture | None:
        return None if self.config.model.vision.region else self.pictures.read(identity, sample, rng)

    def _regions(self, sample: Sample, group: int, rng: np.random.Generator) -> Regions | None:
        config, region = self.config.data.regions, self.config.model.vision.region
        if config is None:
            return None
        features = region.features if region else None

        def elsewhere() -> np.ndarray | None:
            other = draw_other(self.sources, self.group, group, rng) if self.sources else None
            found_KF = None if other is None else other.region_features
            return None if found_KF is None else found_KF[rng.integers(len(found_KF))].astype(np.float32)

        return read_regions(sample, config, features, self.vocabulary, rng, elsewhere)

    def _caption(self, sample: Sample, rng: np.random.Generator) -> str:
        if self.config.data.captions == "one":
            return sample.captions[rng.integers(len(sample.captions))]
        return " ".join(sample.captions[i] for i in rng.permutation(len(sample.captions)))

    def _mask(self, text: Text, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        config = self.config.objectives.mlm
        if config is None:
            return text.ids_L, np.full_like(text.ids_L, IGNORE)
        second = config.probability if config.second_probability is None else config.second_probability
        probability_L = np.where(text.segments_L > 0, second, config.probability)
        chosen_L = choose(self.tokenizer.words(text.ids_L), probability_L, config.unit, rng)
        return mask_tokens(text.ids_L, chosen_L, self.tokenizer.mask_id, len(self.tokenizer), rng)

    def group(self, identity: Identity, sample: Sample) -> int:
        """The number of the group's name, or of the sample's identity."""
        key = self.config.data.group_by
        return _number(identity if key is None else sample.metadata[key])


def _number(name: object) -> int:
    """63 bits, the same on every rank and in every run."""
    digest = hashlib.blake2b(repr(name).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
