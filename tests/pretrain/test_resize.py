"""Weights at another image size: what does not depend on it is untouched, the rest is stretched by known rules."""

import pytest
import torch
from timm.layers import resample_abs_pos_embed

from pretrain.models.build import DuoModel
from pretrain.models.interface import ImageInput
from pretrain.models.resize import at_size
from shards.errors import UserError
from tests.pretrain.tiny import VOCABULARY, tiny_config

TINY_VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 16}
TINY_SWIN = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "patch_size": 4}


def model(vision: dict[str, object], size: int) -> DuoModel:
    torch.manual_seed(0)
    config = tiny_config().model.model_dump()
    return DuoModel(
        type(tiny_config().model).model_validate(config | {"vision": vision, "image_size": size}), VOCABULARY
    )


def resized(vision: dict[str, object], before: int, after: int) -> tuple[DuoModel, DuoModel]:
    small, large = model(vision, before).eval(), model(vision, after).eval()
    large.load_state_dict(at_size(small.state_dict(), large))
    return small, large


def test_positions_of_a_vit_are_stretched_as_timm_does():
    small, large = resized({"name": "vit_tiny_patch16_224", "options": TINY_VIT}, 64, 96)
    expected = resample_abs_pos_embed(small.vision.backbone.pos_embed, (6, 6), num_prefix_tokens=1)
    torch.testing.assert_close(large.vision.backbone.pos_embed, expected)
    same = [name for name in small.state_dict() if not name.endswith("pos_embed")]
    assert all(torch.equal(small.state_dict()[name], large.state_dict()[name]) for name in same)


def test_a_swin_works_at_another_size():
    small, large = resized({"name": "swin_tiny_patch4_window7_224", "options": TINY_SWIN}, 32, 64)
    pixels = torch.full((1, 64, 64, 3), 128, dtype=torch.uint8)
    one, other = small.encode_image(ImageInput(pixels[:, :32, :32])), large.encode_image(ImageInput(pixels))
    assert other.mask_BT.shape[1] == 4 * one.mask_BT.shape[1]
    # A picture of one grey has no edges inside: every window sees the same, at either size.
    torch.testing.assert_close(other.embedding_BE, one.embedding_BE, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_linear_patches_stretch_as_in_the_forward():
    """The larger model sees a large image as the smaller one does, which stretches while it runs."""
    small, large = resized({"patch": {"size": 16, "width": 32}}, 64, 96)
    pixels = torch.randint(0, 256, (2, 96, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    one, other = (m.encode_image(ImageInput(pixels)).tokens_BTD for m in (small, large))
    torch.testing.assert_close(one, other)


def test_convolutions_have_nothing_to_stretch():
    small, large = resized({"name": "resnet10t", "options": {"channels": [8, 8, 16, 16]}}, 64, 96)
    assert all(torch.equal(a, b) for a, b in zip(small.state_dict().values(), large.state_dict().values(), strict=True))


def test_what_timm_cannot_stretch_is_named():
    options = {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 16}
    small, large = (model({"name": "vit_tiny_patch16_224", "options": options}, size) for size in (64, 96))
    broken = small.state_dict() | {"vision.backbone.norm.weight": torch.ones(7)}
    with pytest.raises(
        UserError, match=r"`model.image_size` \(=96\) must be that of the checkpoint: timm cannot stretch"
    ):
        at_size(broken, large)
