"""CLIP against `transformers.CLIPModel`: embeddings, loss and gradients with the same random weights."""

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from pretrain.models.build import DuoModel
from pretrain.models.config import FusionConfig, ModelConfig, TextConfig, VisionConfig
from pretrain.objectives.config import ITCConfig
from pretrain.objectives.itc import ITC
from pretrain.objectives.views import Views
from tests.parity.weights import batch_of, copy, distance, shake, worst_gradient

VOCABULARY, EOS = 40, 39
SPECIAL = {"bos_token_id": 38, "eos_token_id": EOS}
SHAPE = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture
def theirs() -> CLIPModel:
    text = {"vocab_size": VOCABULARY, "max_position_embeddings": 12, **SPECIAL, **SHAPE}
    vision = {"image_size": 32, "patch_size": 8, **SHAPE}
    return shake(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)))


@pytest.fixture
def ours() -> DuoModel:
    options = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    config = ModelConfig(
        image_size=32,
        vision=VisionConfig(name="vit_base_patch16_clip_quickgelu_224", options=options),
        text=TextConfig(kind="clip", pooling="last", options={"max_position_embeddings": 12, **SPECIAL, **SHAPE}),
        fusion=FusionConfig(trunk="none"),
        embedding_dim=16,
        projection_bias=False,
    )
    return DuoModel(config, VOCABULARY).eval()


def table(theirs: CLIPModel) -> dict:
    """Our names -> their tensors."""
    given = dict(theirs.named_parameters())
    prefix = "text_model."
    found = {f"text.bert.{n.removeprefix(prefix)}": value for n, value in given.items() if n.startswith(prefix)}
    found |= {"image_projection.weight": given["visual_projection.weight"]}
    found |= {"text_projection.weight": given["text_projection.weight"]}
    vision, image = "vision_model.", "vision.backbone."
    found[f"{image}cls_token"] = given[f"{vision}embeddings.class_embedding"]
    found[f"{image}pos_embed"] = given[f"{vision}embeddings.position_embedding.weight"]
    found[f"{image}patch_embed.proj.weight"] = given[f"{vision}embeddings.patch_embedding.weight"]
    norms = {"norm_pre": "pre_layrnorm", "norm": "post_layernorm"}
    layers = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.out_proj"}
    layers |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    for kind in ("weight", "bias"):
        found |= {f"{image}{a}.{kind}": given[f"{vision}{b}.{kind}"] for a, b in norms.items()}
        for n in range(2):
            inside = f"{vision}encoder.layers.{n}."
            found |= {f"{image}blocks.{n}.{a}.{kind}": given[f"{inside}{b}.{kind}"] for a, b in layers.items()}
            qkv = [given[f"{inside}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            found[f"{image}blocks.{n}.attn.qkv.{kind}"] = qkv
    return found


def test_embeddings_loss_and_gradients(ours, theirs):
    sources = copy(ours, table(theirs))
    generator = torch.Generator().manual_seed(1)
    pixels_BHWC = torch.randint(0, 256, (4, 32, 32, 3), generator=generator, dtype=torch.uint8)
    normal_BCHW = ((pixels_BHWC.float() - ours.vision.mean) / ours.vision.std).permute(0, 3, 1, 2)
    lengths = torch.tensor([12, 5, 9, 7])
    ids_BL = torch.randint(0, 38, (4, 12), generator=generator)
    ids_BL[torch.arange(4), lengths - 1] = EOS
    mask_BL = torch.arange(12) < lengths[:, None]
    ids_BL = torch.where(mask_BL, ids_BL, EOS)

    expected = theirs(input_ids=ids_BL, attention_mask=mask_BL.long(), pixel_values=normal_BCHW, return_loss=True)
    views = Views(ours, batch_of(pixels_BHWC, ids_BL, mask_BL), ITC.reads)
    contrast = ITC(ITCConfig(temperature=float((-theirs.logit_scale.detach()).exp())), ours.shape)
    loss = contrast(views)
    expected.loss.backward()
    loss.backward()

    # Measured: 0, 0, 0 and, of gradients, 1.2e-6.
    assert distance(views.image.embedding_BE, expected.image_embeds) < 1e-5
    assert distance(views.text.embedding_BE, expected.text_embeds) < 1e-5
    assert distance(loss, expected.loss) < 1e-5
    assert worst_gradient(ours, sources) < 5e-5
    assert float(contrast.log_temperature.grad) == pytest.approx(-float(theirs.logit_scale.grad), rel=1e-4)
