"""Regions, linear patches and what is done with image tokens, against obvious code."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from pretrain.models.config import (
    BlocksConfig,
    FusionConfig,
    ModelConfig,
    PatchConfig,
    ProjectionConfig,
    RegionConfig,
    TextConfig,
    VisionConfig,
)
from pretrain.models.interface import ImageInput, TextInput
from pretrain.models.patches import PatchEmbedder
from pretrain.models.regions import RegionEmbedder, encode_boxes
from pretrain.models.tokens import random_subset
from pretrain.models.tower import ImageTower, text_encoder, visual_embedder
from pretrain.models.vision import cells
from pretrain.objectives.config import ITCConfig, ObjectivesConfig
from pretrain.task import outline
from shards.errors import UserError
from tests.pretrain.test_models import loud

RESNET = {"name": "resnet10t", "options": {"channels": [8, 16, 24, 32]}}


def regions(classes: int = 0) -> ImageInput:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(2, 4, 2, generator=generator) / 2
    boxes = torch.cat([corners, corners + torch.rand(2, 4, 2, generator=generator) / 2], -1)
    mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
    hidden = torch.tensor([[False, True, False, False], [False, False, True, True]])
    probabilities = torch.rand(2, 4, classes, generator=generator) if classes else None
    return ImageInput(None, torch.randn(2, 4, 6, generator=generator), boxes, mask, hidden, probabilities)


def test_boxes_are_written_out():
    corners = torch.tensor([[[0.1, 0.2, 0.5, 0.8]]])
    expected = [0.1, 0.2, 0.5, 0.8, 0.4, 0.6, 0.24]
    places = {"box4": [0, 1, 2, 3], "box5": [0, 1, 2, 3, 6], "box6": [0, 1, 2, 3, 4, 5], "box7": list(range(7))}
    for kind, numbers in places.items():
        assert encode_boxes(corners, kind)[0, 0].tolist() == pytest.approx([expected[i] for i in numbers], rel=1e-6)


def slow_region(embedder: RegionEmbedder, feature, box, classes):
    config = embedder.config
    place = None
    if config.box:
        place = torch.cat([encode_boxes(box[None, None], config.box)[0, 0], *([classes] if config.classes else [])])
    if place is not None and config.combine == "concatenate":
        token = embedder.feature(torch.cat([feature, place]))
    else:
        token = embedder.feature(feature)
        if embedder.part_norms:
            token = embedder.part_norms[0](token)
        if place is not None:
            where = embedder.place(place)
            token = token + (embedder.part_norms[1](where) if embedder.part_norms else where)
            token = token / 2 if config.combine == "mean" else token
    return embedder.norm(token if embedder.type_vector is None else token + embedder.type_vector)


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"box": "box4", "combine": "mean", "norm_parts": True, "norm": False},  # LXMERT
        {"box": "box7", "norm_parts": True, "type_vector": True, "hidden": "learned"},  # UNITER
        {"box": "box5", "whole_image": True},  # ViLBERT
        {"type_vector": True},  # VisualBERT
        {"box": "box7", "class_token": True},  # LightningDOT
        {"box": "box6", "combine": "concatenate", "norm": False},  # OSCAR
        {"box": "box6", "classes": 3, "layers": 2},  # Unified-VLP
    ],
)
def test_regions_equal_the_loop_over_regions(options):
    embedder = loud(RegionEmbedder(RegionConfig(features=6, width=8, **options)))
    image = regions(options.get("classes", 0))
    tokens, mask, pooled = embedder(image)
    first = embedder.prefix
    assert torch.equal(mask[:, first:], image.mask_BK)
    instead = torch.zeros(6, dtype=torch.float64) if embedder.mask_vector is None else embedder.mask_vector
    for b, k in product(range(2), range(4)):
        feature = instead if image.hidden_BK[b, k] else image.features_BKF[b, k].double()
        classes = None if image.probabilities_BKC is None else image.probabilities_BKC[b, k].double()
        expected = slow_region(embedder, feature, image.boxes_BK4[b, k].double(), classes)
        # Measured: at most 2e-16 in float64.
        torch.testing.assert_close(tokens[b, k + first], expected, rtol=0, atol=1e-12)
    for b in range(2):
        if embedder.class_token is not None:
            torch.testing.assert_close(pooled[b], embedder.class_token[0, 0])
        elif first:
            seen = [image.features_BKF[b, k] for k in range(4) if image.mask_BK[b, k] and not image.hidden_BK[b, k]]
            full = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
            expected = slow_region(embedder, torch.stack(seen).double().mean(0), full, None)
            torch.testing.assert_close(tokens[b, 0], expected, rtol=0, atol=1e-7)  # features are averaged in float64
            torch.testing.assert_close(pooled[b], tokens[b, 0])
        else:
            torch.testing.assert_close(pooled[b], tokens[b][mask[b]].mean(0))


def slow_patches(embedder: PatchEmbedder, pixels_HWC, rows, columns):
    """Patch by patch; positions by bilinear interpolation between corners."""
    size, tokens = embedder.config.size, []
    weight, bias = embedder.projection.weight, embedder.projection.bias
    table = embedder.positions[0]
    for i, j in product(range(rows), range(columns)):
        patch = pixels_HWC[i * size : (i + 1) * size, j * size : (j + 1) * size].double() / 255
        value = (weight * ((patch - 0.5) / 0.5).permute(2, 0, 1)).sum((1, 2, 3)) + bias
        y = i * (table.shape[1] - 1) / max(1, rows - 1)
        x = j * (table.shape[2] - 1) / max(1, columns - 1)
        top, left = min(int(y), table.shape[1] - 2), min(int(x), table.shape[2] - 2)
        dy, dx = y - top, x - left
        upper = table[:, top, left] * (1 - dx) + table[:, top, left + 1] * dx
        lower = table[:, top + 1, left] * (1 - dx) + table[:, top + 1, left + 1] * dx
        tokens.append(value + upper * (1 - dy) + lower * dy)
    return torch.stack(tokens)


@torch.no_grad()
def test_patches_of_any_shape_equal_the_loop_over_patches():
    embedder = loud(PatchEmbedder(PatchConfig(size=8, width=6), image_size=32))
    pixels = torch.randint(0, 256, (3, 48, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([[48, 16], [24, 32], [32, 24]])
    tokens, mask, pooled = embedder(ImageInput(pixels, sizes_B2=sizes))
    assert mask.sum(1).tolist() == [1 + 12, 1 + 12, 1 + 12]
    assert tokens.shape[1] == 13  # what no image needs is left out
    for b, (height, width) in enumerate(sizes.tolist()):
        expected = slow_patches(embedder, pixels[b], height // 8, width // 8)
        torch.testing.assert_close(tokens[b][mask[b]][1:], expected, rtol=0, atol=1e-12)
        assert torch.equal(tokens[b, 0], embedder.class_token[0, 0])
        assert torch.equal(pooled[b], tokens[b, 0])
    square, mask, _ = embedder(ImageInput(pixels[:, :32]))
    assert mask.all()
    torch.testing.assert_close(square[1, 1:], slow_patches(embedder, pixels[1], 4, 4), rtol=0, atol=1e-12)


@torch.no_grad()
def test_training_keeps_a_random_subset_of_patches():
    embedder = loud(PatchEmbedder(PatchConfig(size=8, width=6, subset=5), image_size=32))
    image = ImageInput(torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8))
    whole = embedder(image).tokens_BND[:, 1:]
    seen = set()
    for _ in range(20):
        tokens, mask, _ = embedder.train()(image)
        assert mask.all()
        assert tokens.shape == (2, 6, 6)
        distances = torch.cdist(tokens[0, 1:], whole[0])
        places = distances.argmin(1).tolist()
        assert distances.amin(1).max() < 1e-12
        assert places == sorted(set(places))
        seen |= set(places)
    assert len(seen) == 16  # a given patch is never kept with probability (11 / 16) ** 20 = 6e-4; the seed is fixed


def test_a_subset_takes_what_is_there_first():
    mask = torch.tensor([[True] * 3 + [False] * 5, [True] * 8])
    places = random_subset(mask, 4)
    assert places[0, :3].tolist() == [0, 1, 2]
    assert places.shape == (2, 4)
    assert (places.diff(dim=1) > 0).all()


def test_random_pixels_of_a_grid_in_training_alone():
    """Pixel-BERT: a random subset of the features, in training."""
    encoder = visual_embedder(VisionConfig(**RESNET, subset=3, width=20), 64)
    image = ImageInput(torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8))
    assert encoder.train()(image).tokens_BND.shape == (2, 3, 20)
    assert encoder.eval()(image).tokens_BND.shape == (2, 4, 20)


@torch.no_grad()
def test_one_vector_for_the_whole_image():
    encoder = visual_embedder(VisionConfig(**RESNET, tokens="pooled"), 64).eval()
    tokens, mask, pooled = encoder(ImageInput(torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)))
    assert torch.equal(tokens[:, 0], pooled)
    assert mask.shape == (2, 1)
    assert encoder.width == pooled.shape[1]


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["own", "first", "mean"])
def test_a_tower_attends_over_what_is_there(pooling):
    config = VisionConfig(
        region=RegionConfig(features=6, width=8), blocks=BlocksConfig(depth=2, heads=2, norm="pre"), pooling=pooling
    )
    tower = loud(visual_embedder(config, 64))
    assert isinstance(tower, ImageTower)
    image = regions()
    tokens, mask, pooled = tower(image)
    longer = ImageInput(
        *[None if v is None else F.pad(v, (0, 0) * (v.ndim - 2) + (0, 2)) for v in vars(image).values()]
    )
    assert torch.allclose(tower(longer).tokens_BND[:, :4][mask], tokens[mask], rtol=0, atol=1e-12)
    own = tower.embedder(image).pooled_BP
    expected = {
        "own": own,
        "first": tokens[:, 0],
        "mean": torch.stack([t[m].mean(0) for t, m in zip(tokens, mask, strict=True)]),
    }
    torch.testing.assert_close(pooled, expected[pooling])


def test_kinds_exclude_each_other_and_patches_must_fit():
    with pytest.raises(ValueError, match=r"`model\.vision\.region` and `model\.vision\.patch` exclude each other"):
        VisionConfig(region=RegionConfig(), patch=PatchConfig())
    with pytest.raises(UserError, match=r"`model\.image_size` \(=100\) must be a multiple of the patch size \(=32\)"):
        PatchEmbedder(PatchConfig(), 100)


def test_sines_are_written_out():
    box = torch.tensor([[[0.1, 0.2, 0.5, 0.8]]], dtype=torch.float64)
    found = encode_boxes(box, "sines")[0, 0].reshape(4, 2, 256)
    for number, percent in enumerate((30, 50, 40, 60)):  # centre, width and height
        for wave in (0, 1, 100, 255):
            angle = percent / 1000 ** (wave / 256)
            expected = [math.sin(angle), math.cos(angle)]
            assert found[number, :, wave].tolist() == pytest.approx(expected, abs=1e-9)


@torch.no_grad()
def test_a_whole_image_has_a_place_but_no_class():
    config = RegionConfig(features=6, width=8, box="box6", classes=3, whole_image=True, relu=True, norm=False)
    embedder, image = loud(RegionEmbedder(config)), regions(classes=3)
    tokens = embedder(image).tokens_BND
    seen = image.features_BKF[1, :2].double().mean(0)
    place = torch.tensor([0, 0, 1, 1, 1, 1, 0, 0, 0], dtype=torch.float64)
    expected = (embedder.feature(seen) + embedder.place(place)).clamp(min=0)
    torch.testing.assert_close(tokens[1, 0], expected, rtol=0, atol=1e-7)


def test_the_last_convolution_is_left_out_where_there_is_one():
    config = VisionConfig(name="efficientnet_b0", last_conv=False)
    with torch.device("meta"):
        encoder = visual_embedder(config, 64)
        tokens, _, pooled = encoder(encoder.example())
    assert tokens.shape[2] == pooled.shape[1] == encoder.width == 320
    with pytest.raises(UserError, match=r"`model\.vision\.last_conv` \(=false\) is for EfficientNets, not resnet10t"):
        visual_embedder(VisionConfig(**RESNET, last_conv=False), 64)


def test_a_grid_of_one_cell_can_be_outlined():
    """In training BatchNorm refuses one value per channel: a check before the run must not be a batch of one."""
    config = ModelConfig(image_size=32, vision=VisionConfig(**RESNET), fusion=FusionConfig(trunk="none"))
    task = outline(config, ObjectivesConfig(itc=ITCConfig()), 50)
    assert task.training


@torch.no_grad()
def test_cells_are_means_over_the_parts_of_a_grid():
    """BriVL: the whole grid and its cuts, against the mean of each part."""
    grid = torch.randn(2, 5, 6, 6, dtype=torch.float64)
    found = cells(grid, [1, 3])
    assert found.shape == (2, 10, 5)
    torch.testing.assert_close(found[:, 0], grid.mean((2, 3)))
    for row, column in product(range(3), range(3)):
        part = grid[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        torch.testing.assert_close(found[:, 1 + 3 * row + column], part.mean((2, 3)))
    encoder = visual_embedder(VisionConfig(**RESNET, grids=[1, 2]), 64).eval()
    assert encoder(ImageInput(torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8))).tokens_BND.shape == (2, 5, 32)
    with pytest.raises(UserError, match=r"`model\.vision\.grids` \(=\[2\]\) are cut from a grid, and vit_"):
        visual_embedder(VisionConfig(name="vit_tiny_patch16_224", grids=[2]), 64)


@torch.no_grad()
def test_stages_of_a_resnet_are_left_out():
    encoder = visual_embedder(VisionConfig(**RESNET, stages=3), 64).eval()
    image = ImageInput(torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8))
    tokens, _, pooled = encoder(image)
    whole = visual_embedder(VisionConfig(**RESNET), 64).eval()
    whole.load_state_dict(encoder.state_dict(), strict=False)
    normal = ((image.pixels_BHWC.float() - whole.mean) / whole.std).permute(0, 3, 1, 2)
    third = whole.backbone.forward_intermediates(normal, indices=[3], intermediates_only=True)[0]
    torch.testing.assert_close(tokens, third.flatten(2).transpose(1, 2))
    assert (encoder.width, encoder.pooled_width, pooled.shape) == (24, 24, (2, 24))
    with pytest.raises(UserError, match=r"`model\.vision\.stages` \(=2\) is for ResNets, not vit_"):
        visual_embedder(VisionConfig(name="vit_tiny_patch16_224", stages=2), 64)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["cls", "last", "mean"])
def test_a_text_tower_attends_over_what_is_there(pooling):
    options = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = TextConfig(options=options, pooling=pooling, blocks=BlocksConfig(depth=2, heads=2))
    tower = loud(text_encoder(config, 50))
    ids, mask = torch.randint(5, 50, (2, 6)), torch.arange(6) < torch.tensor([[4], [6]])
    for causal in (False, True):
        tokens, pooled = tower(TextInput(ids, mask), causal)
        alone, own = tower(TextInput(ids[:1, :4], mask[:1, :4]), causal)
        torch.testing.assert_close(tokens[:1, :4], alone, rtol=0, atol=1e-12)
        torch.testing.assert_close(pooled[:1], own, rtol=0, atol=1e-12)
    changed = ids.clone()
    changed[1, 5] = 49 if ids[1, 5] != 49 else 48
    after = tower(TextInput(changed, mask), True)[0]
    assert torch.equal(after[1, :5], tokens[1, :5])  # no token looks ahead


def test_a_projection_of_two_layers():
    config = ModelConfig(
        image_size=64,
        vision=VisionConfig(**RESNET),
        text=TextConfig(options={"hidden_size": 8, "num_hidden_layers": 0, "num_attention_heads": 2}),
        fusion=FusionConfig(trunk="none"),
        embedding_dim=16,
        projection=ProjectionConfig(hidden=12, norm=True),
    )
    model = outline(config, ObjectivesConfig(itc=ITCConfig()), 50).model
    shapes = [tuple(p.shape) for p in model.image_projection.parameters()]
    assert shapes == [(12, 32), (12,), (12,), (12,), (16, 12), (16,)]
    with pytest.raises(ValueError, match=r"class_token` and `model\.vision\.region\.whole_image` exclude each other"):
        RegionConfig(class_token=True, whole_image=True)
