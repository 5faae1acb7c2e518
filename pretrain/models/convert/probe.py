"""Fixed inputs on which two implementations of one model are compared, and the differences of their outputs.

Shapes: B pairs, L text tokens, K regions, N image tokens.
"""

from collections.abc import Iterable
from functools import cached_property

import torch
from torch import Tensor

from pretrain.checkpoint import Checkpoint
from pretrain.models.interface import Encoded, Fused, ImageInput, TextInput
from pretrain.models.patches import PatchEmbedder
from pretrain.models.regions import RegionEmbedder
from pretrain.models.vision import ImageEncoder
from pretrain.objectives.mlm import MLM

LENGTH, REGIONS = 8, 4


class Probe:
    """Two pairs of noise and random tokens, the second text half as long, as ours and as transformers' inputs."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.task, self.model = checkpoint.task, checkpoint.task.model
        self._generator = torch.Generator().manual_seed(0)
        self._size, self._tokenizer = checkpoint.config.model.image_size, checkpoint.tokenizer
        self.text, self.image = self._text(), self._image()

    @property
    def words(self) -> dict[str, Tensor]:
        return {"input_ids": self.text.ids_BL, "attention_mask": self.text.mask_BL.long()}

    @property
    def pixels(self) -> dict[str, Tensor]:
        """The normalised image."""
        vision = self.model.vision
        pixels_BHWC = self.image.pixels_BHWC
        assert pixels_BHWC is not None
        if isinstance(vision, PatchEmbedder):
            normal_BHWC = (pixels_BHWC.float() / 255 - vision.config.mean) / vision.config.std
        else:
            assert isinstance(vision, ImageEncoder)
            normal_BHWC = (pixels_BHWC.float() - vision.mean) / vision.std
        return {"pixel_values": normal_BHWC.permute(0, 3, 1, 2)}

    @cached_property
    def encoded(self) -> tuple[Encoded, Encoded]:
        """Image and text."""
        return self.model.encode_image(self.image), self.model.encode_text(self.text)

    @cached_property
    def fused(self) -> Fused:
        image, text = self.encoded
        return self.model.fuse(text, self.model.remember(image))

    def said(self, x_BLD: Tensor) -> Tensor:
        """What is there of a text's values, [T, D]."""
        return x_BLD[:, : self.text.mask_BL.shape[1]][self.text.mask_BL]

    @property
    def word_logits(self) -> Tensor:
        """float [T, V]."""
        head = self.task.objectives["mlm"]
        assert isinstance(head, MLM)
        return head.logits(self.said(self.fused.text_BLD), self.model.word_embedding_VD)

    def _text(self) -> TextInput:
        tokenizer, length = self._tokenizer, min(LENGTH, self.model.text.longest)
        ids_BL = torch.randint(0, len(tokenizer), (2, length), generator=self._generator)
        ids_BL[ids_BL == tokenizer.last_id] = tokenizer.first_id
        ids_BL[0, length - 1 :], ids_BL[1, length // 2 :] = tokenizer.last_id, tokenizer.last_id
        return TextInput(ids_BL, torch.arange(length) < torch.tensor([[length], [length // 2 + 1]]))

    def _image(self) -> ImageInput:
        vision, size = self.model.vision, self._size
        if not isinstance(vision, RegionEmbedder):
            shape = (2, size, size, 3)
            return ImageInput(torch.randint(0, 256, shape, generator=self._generator, dtype=torch.uint8))
        features_BKF = torch.randn(2, REGIONS, vision.config.features, generator=self._generator)
        boxes_BK4 = torch.rand(2, REGIONS, 4, generator=self._generator)
        return ImageInput(None, features_BKF, boxes_BK4, torch.arange(REGIONS) < torch.tensor([[REGIONS], [2]]))


def difference(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The largest difference of found and expected values, as a share of the largest expected one where that is above
    1."""
    return max(float((found - expected).abs().max() / expected.abs().max().clamp(min=1)) for found, expected in pairs)
