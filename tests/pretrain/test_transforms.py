"""The pixels of training: close to Pillow from end to end, and the same whoever makes them."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.config import AugmentConfig
from pretrain.data.transforms import random_box, stack_pixels, training_pixels
from shards.sample import Sample
from shards.sources.scenes import ScenesSource
from shards.stream import ShardStream, StreamedSample
from shards.write import build_shards

SIZE = 48
AUGMENT = AugmentConfig(crop_scale=0.5, flip=True)


def slow_pixels(sample: Sample, rng: np.random.Generator) -> np.ndarray:
    """Pillow decodes, cuts, resizes and flips."""
    image = Image.open(io.BytesIO(sample.image)).convert("RGB")
    top, left, height, width = random_box(image.height, image.width, AUGMENT.crop_scale, rng)
    image = image.crop((left, top, left + width, top + height)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(image)[:, ::-1] if rng.random() < 0.5 else np.asarray(image)


@pytest.mark.parametrize("size", [96, 320])
def test_pixels_are_close_to_pillow(size):
    scenes = ScenesSource(12, 0, "train", size)
    found = []
    for number in range(len(scenes)):
        fast = training_pixels(scenes[number], SIZE, AUGMENT, np.random.default_rng(number)).numpy()
        slow = slow_pixels(scenes[number], np.random.default_rng(number))
        assert fast.flags["C_CONTIGUOUS"]
        found.append(np.abs(fast.astype(int) - slow))
    # Measured: mean 0.006 (96) and 0.003 (320), largest 1; both round their weights to fixed point.
    assert np.mean(found) < 0.02
    assert np.max(found) <= 2


def _transform(item: StreamedSample) -> torch.Tensor:
    return training_pixels(item.sample, SIZE, AUGMENT, item.rng())


def test_workers_make_the_same_batches(tmp_path):
    build_shards(ScenesSource(40, 0, "train", 96), tmp_path / "shards", samples_per_shard=15)
    streams = [
        ShardStream(tmp_path / "shards", 8, workers=workers, transform=_transform, collate=stack_pixels)
        for workers in (0, 1, 2)
    ]
    alone, *others = [list(stream.batches(8)) for stream in streams]
    assert all(batch.shape == (8, SIZE, SIZE, 3) for batch in alone)
    for batches in others:
        assert all(torch.equal(a, b) for a, b in zip(alone, batches, strict=True))
        # One batch is one block of shared memory, so nothing is copied on its way here.
        assert all(batch.is_shared() and batch.is_contiguous() for batch in batches)
