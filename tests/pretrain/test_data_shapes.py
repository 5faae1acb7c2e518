"""Images that keep their aspect: which size each gets, how they share a batch, and that padding changes nothing."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.checkpoint import load_checkpoint
from pretrain.config import ImageShapeConfig, PretrainConfig
from pretrain.data.images import evaluation_images
from pretrain.data.loader import Preparation
from pretrain.data.shapes import kept_size, pad_pixels
from pretrain.data.tokenizer import Tokenizer
from pretrain.models.config import VisionConfig
from pretrain.models.interface import ImageInput
from pretrain.models.tower import visual_embedder
from pretrain.settings import parse_config
from pretrain.train import fit
from shards.errors import UserError
from shards.reader import ShardSet
from shards.sample import Identity
from shards.stream import ShardStream
from tests.pretrain.test_models import loud
from tests.pretrain.test_models_vision import RESNET

SHAPE = "data.image_shape={shortest_edge: 32, longest_edge: 64, multiple: 16}"
PATCHES = "model.vision={patch: {size: 16, width: 32}}"
AUGMENTED = "data.augment={crop_scale: 0.5, color: 0.3, flip: true, erase: 0.5}"
SIZES = [(48, 48), (30, 90), (100, 40), (64, 48), (33, 47)]


class Oblongs:
    """Scenes stretched to other shapes; a `Source`."""

    name = "oblongs"

    def __init__(self, shards):
        self.shards = ShardSet(shards)

    def __len__(self):
        return 12

    def __getitem__(self, index):
        sample, target = self.shards[index], io.BytesIO()
        height, width = SIZES[index % len(SIZES)]
        Image.open(io.BytesIO(sample.image)).resize((width, height)).save(target, "png")
        return replace(sample, image=target.getvalue(), extension="png")

    def identity(self, index):
        return Identity(self.name, index)

    def fingerprint(self):
        return "0b" * 32


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 640, (384, 512)),  # COCO's usual shape, as ViLT's code resizes it
        (640, 480, (512, 384)),
        (500, 500, (384, 384)),
        (100, 1000, (64, 608)),  # the longer edge decides
        (427, 640, (384, 576)),  # 575.55 rounds to 576, which 32 divides; cut to 575 it would be 544
        (10, 5000, (32, 608)),  # never less than one patch
    ],
)
def test_the_shorter_edge_decides_unless_the_longer_is_too_long(height, width, expected):
    assert kept_size(height, width, ImageShapeConfig()) == expected


def test_padding_is_black_and_sizes_are_told():
    images = [torch.full(shape, 7, dtype=torch.uint8) for shape in ((2, 5, 3), (4, 1, 3))]
    pixels, sizes = pad_pixels(images)
    assert pixels.shape == (2, 4, 5, 3)
    assert sizes.tolist() == [[2, 5], [4, 1]]
    assert [int(image.sum()) for image in pixels] == [int(image.sum()) for image in images]
    assert torch.equal(pixels[1, :4, :1], images[1])


def batches(config, source, world=1, workers=0, count=4):
    preparation = Preparation(config, Tokenizer(config.data.tokenizer))
    how = {"transform": preparation.transform, "collate": preparation.collate, "workers": workers}
    ranks = (ShardStream(source, 12, rank=rank, world=world, **how).batches(count) for rank in range(world))
    return list(zip(*ranks, strict=True))


def unpadded(parts):
    for part in parts:
        for pixels, (height, width) in zip(part.pixels_BHWC, part.image_sizes_B2.tolist(), strict=True):
            assert not pixels[height:].any()
            assert not pixels[:, width:].any()
            yield pixels[:height, :width]


@pytest.mark.parametrize(("world", "workers"), [(2, 0), (4, 0), (1, 2)])
def test_ranks_and_workers_see_the_same_pixels(configure, corpus, world, workers):
    config, source = configure(SHAPE, PATCHES, AUGMENTED), Oblongs(corpus.shards)
    shapes = set()
    for whole, parts in zip(batches(config, source), batches(config, source, world, workers), strict=True):
        for one, other in zip(unpadded(whole), unpadded(parts), strict=True):
            assert torch.equal(one, other)
            shapes.add(tuple(one.shape))
    assert len(shapes) > 2


def test_a_run_in_two_lives_is_one_run(configure, corpus, tmp_path):
    """Interrupted and continued, with images of many shapes: the same weights, bit for bit."""

    def trained(name: str, steps: int) -> dict[str, torch.Tensor]:
        how = (SHAPE, PATCHES, AUGMENTED, "data.global_batch=4", "optim.schedule=constant", "run.resume=auto")
        config = configure(*how, "objectives={itc: {}, mlm: {}}", f"run.steps={steps}", f"run.out={tmp_path / name}")
        return load_checkpoint(fit(config, Oblongs(corpus.shards))).task.state_dict()

    whole = trained("whole", 4)
    half = trained("halves", 2)
    halves = trained("halves", 4)
    assert all(torch.equal(halves[name], value) for name, value in whole.items())
    assert any(not torch.equal(half[name], value) for name, value in whole.items())


def test_evaluation_sees_images_in_their_own_shape(configure, corpus):
    config, source = configure(SHAPE, PATCHES), Oblongs(corpus.shards)
    images = evaluation_images([source[i] for i in range(5)], config)
    expected = [kept_size(*SIZES[i], config.data.image_shape) for i in range(5)]
    assert [tuple(size) for size in images.sizes_B2.tolist()] == expected
    model = loud(visual_embedder(config.model.vision, config.model.image_size))
    with torch.no_grad():
        together = model(images)
        for row in range(5):
            alone = model(evaluation_images([source[row]], config))
            torch.testing.assert_close(together.tokens_BND[row][together.mask_BN[row]], alone.tokens_BND[0])


@torch.no_grad()
@pytest.mark.parametrize("subset", [None, 2])
def test_a_convolutional_network_never_sees_the_padding(subset):
    """Each image together with others as alone, although convolutions look across edges."""
    encoder = loud(visual_embedder(VisionConfig(**RESNET, width=20, subset=subset), 64))
    sizes = [(64, 96), (96, 64), (64, 64), (64, 96)]
    images = [
        torch.from_numpy(np.random.default_rng(i).integers(0, 256, (*s, 3), np.uint8)) for i, s in enumerate(sizes)
    ]
    pixels, sizes_B2 = pad_pixels(images)
    tokens, mask, pooled = encoder(ImageInput(pixels, sizes_B2=sizes_B2))
    assert mask.sum(1).tolist() == [6, 6, 4, 6]
    for row, image in enumerate(images):
        alone = encoder(ImageInput(image[None]))
        torch.testing.assert_close(tokens[row][mask[row]], alone.tokens_BND[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(pooled[row], alone.pooled_BP[0], rtol=0, atol=1e-12)
    if subset:
        kept = encoder.train()(ImageInput(pixels, sizes_B2=sizes_B2))
        assert kept.tokens_BND.shape == (4, subset, 20)
        assert kept.mask_BN.all()


def test_a_model_of_one_size_is_refused_before_step_one(configure, corpus):
    with pytest.raises(UserError, match=r"`data\.image_shape` needs a `model\.vision` that takes any shape, and vit_"):
        fit(configure(SHAPE))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": {"image_shape": {"shortest_edge": 700}}}, r"shortest_edge` \(=700\) must be at least .* at most"),
        (
            {"data": {"image_shape": {}, "regions": {}}, "model": {"vision": {"region": {}}}},
            "for models that read pixels",
        ),
        (
            {"data": {"image_shape": {"multiple": 16}}, "model": {"vision": {"patch": {"size": 32}}}},
            r"`data\.image_shape\.multiple` \(=16\) must be a multiple of `model\.vision\.patch\.size` \(=32\)",
        ),
        ({"data": {"image_shape": {}}, "engine": {"zero": 3}}, r"`engine\.zero` \(=3\) cannot follow, use 0, 1 or 2"),
    ],
)
def test_shapes_that_cannot_be_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        parse_config(PretrainConfig, values)
