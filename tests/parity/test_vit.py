"""The image tower against `transformers.ViTModel` and against timm's own models: tokens, pooled vector, gradients."""

import pytest
import timm
import torch
from transformers import ViTConfig, ViTModel

from pretrain.models.config import VisionConfig
from pretrain.models.convert.rules import Rule, Table, modules
from pretrain.models.interface import ImageInput
from pretrain.models.vision import ImageEncoder
from tests.parity.weights import copy, distance, shake, worst_gradient

LAYER, BLOCK = "layers.{n}.", "backbone.blocks.{n}."
VIT = Table(
    (
        Rule(("embeddings.cls_token",), ("backbone.cls_token",)),
        Rule(("embeddings.position_embeddings",), ("backbone.pos_embed",)),
        *modules("embeddings.patch_embeddings.", "backbone.patch_embed.", {"projection": "proj"}),
        *modules(LAYER, BLOCK, {"layernorm_before": "norm1", "layernorm_after": "norm2"}),
        *modules(LAYER, BLOCK, {"attention.o_proj": "attn.proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}),
        Rule(
            tuple(f"{LAYER}attention.{part}_proj.{{kind}}" for part in "qkv"),
            (f"{BLOCK}attn.qkv.{{kind}}",),
            "stack",
        ),
        *modules("", "backbone.", {"layernorm": "norm"}),
    )
)
SIDE = 32


def noise(side: int = SIDE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, side, side, 3), generator=generator, dtype=torch.uint8)


def normal(ours: ImageEncoder, pixels_BHWC: torch.Tensor) -> torch.Tensor:
    return ((pixels_BHWC.float() - ours.mean) / ours.std).permute(0, 3, 1, 2)


def test_vit_tokens_and_gradients():
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    config = ViTConfig(image_size=SIDE, patch_size=8, layer_norm_eps=1e-6, **shape)
    theirs = shake(ViTModel(config, add_pooling_layer=False))
    options = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
    ours = ImageEncoder(VisionConfig(name="vit_base_patch16_224", options=options), SIDE).eval()
    sources = copy(ours, VIT, theirs)
    found = ours(ImageInput(noise()))
    expected = theirs(pixel_values=normal(ours, noise())).last_hidden_state
    found.tokens_BND.square().sum().backward()
    expected.square().sum().backward()
    # Measured: 0, 0 and, of gradients, 1.7e-7.
    assert distance(found.tokens_BND, expected) < 1e-5
    assert distance(found.pooled_BP, expected[:, 0]) < 1e-5
    assert worst_gradient(ours, sources) < 5e-5


BACKBONES = {
    "vit": ("vit_tiny_patch16_224", {"depth": 2}, 64, (17, 192)),
    "swin": ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24}, 64, (4, 192)),
    "resnet": ("resnet10t", {}, 64, (4, 512)),
    "efficientnet": ("tf_efficientnet_b0", {}, 64, (4, 1280)),
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1)}, 64, (4, 320)),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", BACKBONES)
def test_timm_backbones_are_timms(kind):
    """The same parameters in a model that timm made and runs alone."""
    name, options, side, (tokens, width) = BACKBONES[kind]
    ours = shake(ImageEncoder(VisionConfig(name=name, options=options), side))
    sized = {"img_size": side} if kind in ("vit", "swin") else {}
    theirs = timm.create_model(name, num_classes=0, **options, **sized).eval()
    theirs.load_state_dict(ours.backbone.state_dict())
    inputs_BCHW = normal(ours, noise(side))
    features, pooled_BP = theirs.forward_features(inputs_BCHW), theirs(inputs_BCHW)
    found = ours(ImageInput(noise(side)))
    assert found.tokens_BND.shape == (3, tokens, width)
    places_BND = features if kind == "vit" else features.reshape(3, -1, width) if kind == "swin" else None
    if places_BND is None:  # channels first: token y * 2 + x is what stands at row y, column x
        places_BND = torch.stack([features[:, :, y, x] for y in range(2) for x in range(2)], 1)
    assert torch.equal(found.tokens_BND, places_BND)
    assert torch.equal(found.pooled_BP, pooled_BP)
