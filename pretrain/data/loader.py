"""Samples to batches: caption choice, tokens, masking, pixels; all of it in the loader's workers."""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pretrain.batch import Batch, Draw
from pretrain.config import PretrainConfig
from pretrain.data.masking import IGNORE, mask_tokens
from pretrain.data.tokenizer import Tokenizer
from pretrain.data.transforms import training_pixels
from pretrain.stop import spare_worker
from shards.errors import UserError
from shards.sample import Sample
from shards.stream import StreamedSample


class Prepared(NamedTuple):
    """One pair, ready to be stacked."""

    pixels_HWC: Tensor
    token_ids_L: np.ndarray
    masked_ids_L: np.ndarray
    masked_labels_L: np.ndarray
    group: int
    draws_K: np.ndarray


def check_group(key: str | None, sample: Sample) -> None:
    """Refuses a `data.group_by` that the sample does not have."""
    if key is not None and key not in sample.metadata:
        raise UserError(f"`data.group_by` (={key}) is not in the metadata of sample {sample.key}")


@dataclass(frozen=True)
class Preparation:
    """Turns streamed samples into one `Batch`; picklable, so that workers can carry it."""

    config: PretrainConfig
    tokenizer: Tokenizer

    def transform(self, item: StreamedSample) -> Prepared:
        spare_worker()  # here, because nothing of ours runs in a worker before
        data, rng = self.config.data, item.rng()
        token_ids_L = self.tokenizer.encode(self._caption(item.sample, rng), data.max_tokens)
        masked_L, labels_L = self._mask(token_ids_L, rng)
        return Prepared(
            training_pixels(item.sample, self.config.model.image_size, data.augment, rng),
            token_ids_L,
            masked_L,
            labels_L,
            self._group(item),
            rng.random(len(Draw)),
        )

    def collate(self, items: list[Prepared]) -> Batch:
        token_ids_BL = self.tokenizer.pad([item.token_ids_L for item in items])
        return Batch(
            pixels_BHWC=torch.stack([item.pixels_HWC for item in items]),
            token_ids_BL=token_ids_BL,
            token_mask_BL=token_ids_BL != self.tokenizer.pad_id,
            masked_ids_BL=self.tokenizer.pad([item.masked_ids_L for item in items]),
            masked_labels_BL=self.tokenizer.pad([item.masked_labels_L for item in items], IGNORE),
            group_B=torch.tensor([item.group for item in items]),
            draws_BK=torch.from_numpy(np.stack([item.draws_K for item in items])),
        )

    def _caption(self, sample: Sample, rng: np.random.Generator) -> str:
        if self.config.data.captions == "one":
            return sample.captions[rng.integers(len(sample.captions))]
        return " ".join(sample.captions[i] for i in rng.permutation(len(sample.captions)))

    def _mask(self, token_ids_L: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        if self.config.objectives.mlm is None:
            return token_ids_L, np.full_like(token_ids_L, IGNORE)
        special_L = self.tokenizer.special(token_ids_L)
        probability = self.config.objectives.mlm.probability
        return mask_tokens(token_ids_L, special_L, self.tokenizer.mask_id, len(self.tokenizer), probability, rng)

    def _group(self, item: StreamedSample) -> int:
        """63 bits of the group's name, or of the sample's identity: the same on every rank and in every run."""
        key = self.config.data.group_by
        check_group(key, item.sample)
        name = item.identity if key is None else item.sample.metadata[key]
        digest = hashlib.blake2b(repr(name).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1
