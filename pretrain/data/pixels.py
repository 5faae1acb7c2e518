"""The images of a training batch: read one by one, changed at random all at once.

Shapes: B images, S x S pixels, K random draws of each.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pretrain.data.augment import augment, changes
from pretrain.data.augment_config import AugmentConfig
from pretrain.data.dice import throw
from pretrain.data.groups import Groups
from pretrain.data.kept import KeptPixels
from pretrain.data.shapes import pad_pixels
from pretrain.data.transforms import Shape, changed, evaluation_pixels, stack_pixels, training_pixels
from shards.sample import Identity, Sample
from shards.sources.base import Source


class Picture(NamedTuple):
    """One image, ready to be stacked: its pixels, those of another of its group, and its draws."""

    pixels_HWC: Tensor
    partner_HWC: Tensor | None
    draws_K: np.ndarray | None


class Pictures:
    """Makes pictures of samples and a tensor of pictures.

    Args:
        keep: Bytes of decoded images that may stay in memory.
        sources: Where partners come from (`AugmentConfig.blend`); without them none is blended.
        group: The number of a sample's group.
    """

    def __init__(
        self,
        config: AugmentConfig,
        shape: Shape,
        keep: int,
        sources: Sequence[Source],
        group: Callable[[Identity, Sample], int],
    ) -> None:
        self._config, self._shape, self._sources, self._group = config, shape, sources, group
        self._kept = KeptPixels(0 if config.before_resizing else keep)

    @cached_property
    def groups(self) -> Groups | None:
        """Reads all samples when first asked for; None where nothing is blended."""
        return Groups(self._sources, self._group) if self._config.blend and self._sources else None

    def read(self, identity: Identity, sample: Sample, rng: np.random.Generator) -> Picture:
        """Decodes the image, and its partner if it has one."""
        pixels_HWC = self._pixels(identity, sample, rng)
        if not changes(self._config):
            return Picture(pixels_HWC, None, None)
        draws_K, partner_HWC = throw(rng), pixels_HWC
        if self.groups and (found := self.groups.partner(self._group(identity, sample), identity, rng)):
            partner_HWC = self._pixels(*found, rng)
        return Picture(pixels_HWC, partner_HWC if self.groups else None, draws_K)

    def stack(self, pictures: Sequence[Picture]) -> tuple[Tensor | None, Tensor | None]:
        """Pixels, uint8 [B, H, W, 3], and where they differ their sizes, int64 [B, 2]; None without pictures."""
        pixels = [picture.pixels_HWC for picture in pictures]
        if not pixels:
            return None, None
        draws = [picture.draws_K for picture in pictures if picture.draws_K is not None]
        if not isinstance(self._shape, int):
            return pad_pixels(self._each(pixels, draws) if draws else pixels)
        if not draws:
            return stack_pixels(pixels), None
        partners = [picture.partner_HWC for picture in pictures if picture.partner_HWC is not None]
        partner_BHWC = torch.stack(partners) if partners else None
        return augment(torch.stack(pixels), partner_BHWC, torch.from_numpy(np.stack(draws)), self._config), None

    def _each(self, pixels: Sequence[Tensor], draws: Sequence[np.ndarray]) -> list[Tensor]:
        """Images of different shapes, changed one by one."""
        pairs = zip(pixels, draws, strict=True)
        return [augment(image[None], None, torch.from_numpy(own)[None], self._config)[0] for image, own in pairs]

    def _pixels(self, identity: Identity, sample: Sample, rng: np.random.Generator) -> Tensor:
        if self._config.before_resizing:
            return training_pixels(sample, self._shape, self._config, rng)
        pixels_HWC = self._kept.get(identity, lambda: evaluation_pixels(sample, self._shape))
        return changed(pixels_HWC, self._config, rng)
