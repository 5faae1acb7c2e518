"""The forwards that objectives share: each runs when first asked for, once, together with its like.

An objective names the views that it reads (its `reads`). Views that differ in their input alone (clean and masked
text) go through the model as one batch if any objective of the step reads them; reading another one works and costs a
forward.

Shapes: B pairs on this rank, L text tokens, N image tokens, D width.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property, partial
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.batch import Batch, Draw
from pretrain.data.masking import IGNORE
from pretrain.models.interface import Attention, Encoded, Fused, ImageInput, Memory, TextInput, VisionLanguageModel
from pretrain.objectives.negatives import Swap, gather_encoded, swap_texts
from pretrain.objectives.phrases import phrase_input, region_of
from pretrain.rows import Rows

TEXTS = ("text", "masked_text", "phrase", "masked_phrase")
IMAGES = ("image", "masked_image")
FUSED: dict[str, tuple[str, str, Attention]] = {
    "fused_clean": ("text", "image", "bidirectional"),
    "fused_masked_text": ("masked_text", "image", "bidirectional"),
    "fused_masked_image": ("text", "masked_image", "bidirectional"),
    "fused_masked_both": ("masked_text", "masked_image", "bidirectional"),
    "fused_swapped": ("swapped_text", "image", "bidirectional"),
    "fused_phrase": ("phrase", "image", "bidirectional"),
    "fused_masked_phrase": ("masked_phrase", "region", "bidirectional"),
    "fused_seq2seq": ("masked_text", "image", "seq2seq"),
    "fused_prefix": ("prefix_text", "image", "prefix"),
    "fused_causal": ("causal_text", "image", "causal"),
}
"""What each fused view is made of: a text, an image, and who sees whom."""
DERIVED = {"prefix_text": "text", "swapped_text": "text", "region": "image"}
"""Texts and images that are another one seen differently, without an encoding of their own."""


class Look(IntEnum):
    """How much of a fused view is read; each includes those before it."""

    PAIR = 0
    """The vector that stands for the pair."""
    HIDDEN_WORDS = 1
    """The tokens that masked language modelling predicts (`Batch.masked_labels_BL`)."""
    ALL = 2


In = TypeVar("In")
Out = TypeVar("Out", bound=Rows)


@dataclass(frozen=True)
class Teacher:
    """Slow copies of the towers, whose forwards carry no gradient (`pretrain.momentum`).

    Attributes:
        views: The same batch seen through the slow model; to be read without gradient.
        heads: Slow copies of objectives, by name.
        alpha: float [1], their share in distilled targets.
    """

    views: "Views"
    heads: nn.ModuleDict
    alpha: Tensor


class Views:
    """One batch seen through one model.

    Args:
        reads: The views that the objectives of this step will read: names of properties of this class.
        teacher: Where objectives follow momentum towers.
        looks: How much will be read of fused views; all of those that it does not name.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        batch: Batch,
        reads: Collection[str],
        teacher: Teacher | None = None,
        looks: Mapping[str, Look] | None = None,
    ) -> None:
        self.model, self.batch, self._teacher, self._looks = model, batch, teacher, looks or {}
        sides = {side for name in reads if name in FUSED for side in FUSED[name][:2]}
        wanted = {*reads, *sides} | {DERIVED[name] for name in {*reads, *sides} & DERIVED.keys()}
        self._texts = _Together([n for n in TEXTS if n in wanted], self._text_input, self._encode_texts)
        self._images = _Together([n for n in IMAGES if n in wanted], self._image_input, self._encode_images)
        seen = [n for n in IMAGES if n in {DERIVED.get(side, side) for side in sides}]
        self._memories = _Together(seen, self._images.__getitem__, self._remember)
        self._fused = {
            attention: _Together(
                [name for name in FUSED if name in wanted and FUSED[name][2] == attention],
                self._pair,
                partial(self._fuse, attention),
            )
            for attention in {attention for _, _, attention in FUSED.values()}
        }

    def forget(self) -> None:
        """Lets go of all features: views hold each other, so they would stay until Python looks for cycles."""
        if self._teacher:
            self._teacher.views.forget()
        vars(self).clear()

    @property
    def followed(self) -> Teacher:
        """The momentum towers, which the caller knows to be there."""
        assert self._teacher is not None, "an objective follows momentum towers that were not made"
        return self._teacher

    @property
    def text(self) -> Encoded:
        return self._texts["text"]

    @property
    def masked_text(self) -> Encoded:
        """With words hidden (`Batch.masked_ids_BL`)."""
        return self._texts["masked_text"]

    @property
    def phrase(self) -> Encoded:
        """What names one region (`Batch.phrase_ids_BP`)."""
        return self._texts["phrase"]

    @property
    def masked_phrase(self) -> Encoded:
        """The phrase with words hidden (`Batch.phrase_masked_ids_BP`)."""
        return self._texts["masked_phrase"]

    @cached_property
    def region(self) -> Encoded:
        """The part of each image that the phrase names: its tokens, and their mean in the shared space."""
        return region_of(self.image, self.batch, self.model)

    @cached_property
    def region_memory(self) -> Memory:
        """The same parts as the fusion layers see them."""
        return replace(self.memory, mask_BN=self.region.mask_BT)

    @cached_property
    def causal_text(self) -> Encoded:
        """Each token has seen only what stands before it."""
        return self.model.encode_text(self._text_input("text"), causal=True)

    @cached_property
    def prefix_text(self) -> Encoded:
        """The clean text of which a random share from the front, none to all but one token, counts as given."""
        return replace(self.text, prefix_BT=self.prefix_BL)

    @cached_property
    def prefix_BL(self) -> Tensor:
        return prefix(self.batch)

    @cached_property
    def swap(self) -> Swap:
        """Whose text each pair of `fused_swapped` has."""
        return swap_texts(self.batch)

    @cached_property
    def swapped_text(self) -> Encoded:
        """About half of the texts replaced by those of other pairs of the global batch."""
        return gather_encoded(self.text).rows(self.swap.source_B)

    @property
    def image(self) -> Encoded:
        return self._images["image"]

    @property
    def masked_image(self) -> Encoded:
        """With regions hidden (`Batch.masked_regions_BK`)."""
        return self._images["masked_image"]

    @property
    def memory(self) -> Memory:
        """This rank's images as the fusion layers see them."""
        return self._memories["image"]

    @property
    def fused_clean(self) -> Fused:
        """The pair as it is."""
        return self._pairs("fused_clean")

    @property
    def fused_masked_text(self) -> Fused:
        """Hidden words, whole image."""
        return self._pairs("fused_masked_text")

    @property
    def fused_masked_image(self) -> Fused:
        """Whole text, hidden regions."""
        return self._pairs("fused_masked_image")

    @property
    def fused_masked_both(self) -> Fused:
        """Hidden words and hidden regions (ViLBERT, LXMERT)."""
        return self._pairs("fused_masked_both")

    @property
    def fused_swapped(self) -> Fused:
        """True and false pairs, about half each."""
        return self._pairs("fused_swapped")

    @property
    def fused_phrase(self) -> Fused:
        """A region's phrase with the whole image."""
        return self._pairs("fused_phrase")

    @property
    def fused_masked_phrase(self) -> Fused:
        """Hidden words of a region's phrase, and that region."""
        return self._pairs("fused_masked_phrase")

    @property
    def fused_seq2seq(self) -> Fused:
        """Hidden words that see the image and what stands before them (Unified-VLP)."""
        return self._pairs("fused_seq2seq")

    @property
    def fused_prefix(self) -> Fused:
        """`prefix_text` with its image: tokens behind the prefix see it, the image, and what stands before them."""
        return self._pairs("fused_prefix")

    @property
    def fused_causal(self) -> Fused:
        """Each text token has seen the image and what stands before it."""
        return self._pairs("fused_causal")

    def _pairs(self, name: str) -> Fused:
        text, _, attention = FUSED[name]
        fused, length = self._fused[attention][name], getattr(self, text).mask_BT.shape[1]
        if fused.text_BLD.shape[1] == length:
            return fused
        return replace(fused, text_BLD=fused.text_BLD[:, :length])  # what it shared the forward with was longer

    def _pair(self, name: str) -> tuple[Encoded, Memory]:
        text, image, _ = FUSED[name]
        return replace(getattr(self, text), read_BT=self._read(name, text)), self._memory(image)

    def _memory(self, image: str) -> Memory:
        return self.region_memory if image == "region" else self._memories[image]

    def _read(self, name: str, text: str) -> Tensor | None:
        """bool [B, L], the text tokens of a fused view that will be read; None for everything."""
        mask_BL = getattr(self, text).mask_BT
        match self._looks.get(name, Look.ALL):
            case Look.PAIR:
                return torch.zeros_like(mask_BL)
            case Look.HIDDEN_WORDS:
                labels_BL = self.batch.phrase_labels_BP if text == "masked_phrase" else self.batch.masked_labels_BL
                assert labels_BL is not None, "the batch was made without phrases"
                return F.pad(labels_BL != IGNORE, (0, mask_BL.shape[1] - labels_BL.shape[1]))
            case _:
                return None

    def _text_input(self, name: str) -> TextInput:
        batch = self.batch
        if name in ("phrase", "masked_phrase"):
            return phrase_input(batch, masked=name == "masked_phrase")
        ids_BL = batch.masked_ids_BL if name == "masked_text" else batch.token_ids_BL
        return TextInput(ids_BL, batch.token_mask_BL, batch.segments_BL)

    def _image_input(self, name: str) -> ImageInput:
        batch = self.batch
        hidden_BK, features_BKF = batch.masked_regions_BK, batch.region_features_BKF
        if hidden_BK is not None and name == "image":
            hidden_BK = hidden_BK.new_zeros(hidden_BK.shape)
        elif batch.zeroed_regions_BK is not None:
            hidden_BK = batch.zeroed_regions_BK
        if name == "masked_image" and batch.shown_features_BKF is not None:
            features_BKF = batch.shown_features_BKF
        return ImageInput(
            pixels_BHWC=batch.pixels_BHWC,
            features_BKF=features_BKF,
            boxes_BK4=batch.region_boxes_BK4,
            mask_BK=batch.region_mask_BK,
            hidden_BK=hidden_BK,
            probabilities_BKC=batch.region_probabilities_BKC,
            sizes_B2=batch.image_sizes_B2,
        )

    def _encode_texts(self, texts: Sequence[TextInput]) -> Encoded:
        return self.model.encode_text(TextInput.concatenate(texts))

    def _encode_images(self, images: Sequence[ImageInput]) -> Encoded:
        return self.model.encode_image(ImageInput.concatenate(images))

    def _remember(self, images: Sequence[Encoded]) -> Memory:
        return self.model.remember(Encoded.concatenate(images))

    def _fuse(self, attention: Attention, pairs: Sequence[tuple[Encoded, Memory]]) -> Fused:
        texts, memories = (list(side) for side in zip(*pairs, strict=True))
        if any(text.read_BT is None for text in texts):  # one forward for all of them
            texts = [replace(text, read_BT=None) for text in texts]
        return self.model.fuse(Encoded.concatenate(texts), Memory.concatenate(memories), attention)


def prefix(batch: Batch) -> Tensor:
    """bool [B, L], True at the first tokens: a uniform share of the text, the last token never."""
    length_B = batch.token_mask_BL.sum(1)
    given_B = (batch.draws_BK[:, Draw.PREFIX] * length_B).long()
    return given_B.new_ones(batch.token_mask_BL.shape).cumsum(1) <= given_B[:, None]


class _Together(Generic[In, Out]):
    """Outputs by name; the first that is asked for runs all that are wanted in one forward.

    Args:
        wanted: Names in the order in which they are concatenated.
        prepare: A name's input.
        forward: Inputs of B rows each -> output of as many rows in the same order.
    """

    def __init__(
        self, wanted: Sequence[str], prepare: Callable[[str], In], forward: Callable[[Sequence[In]], Out]
    ) -> None:
        self._wanted, self._prepare, self._forward = wanted, prepare, forward
        self._done: dict[str, Out] = {}

    def __getitem__(self, name: str) -> Out:
        if name not in self._done:
            names = self._wanted if name in self._wanted else [name]
            output = self._forward([self._prepare(n) for n in names])
            self._done |= zip(names, output.split(len(names)), strict=True)
        return self._done[name]
