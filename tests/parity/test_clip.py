"""CLIP against `transformers.CLIPModel`: embeddings, loss and gradients with the same random weights."""

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from pretrain.models.config import FusionConfig, ModelConfig, TextConfig, VisionConfig
from pretrain.models.convert.clip import CLIP
from pretrain.objectives.config import ITCConfig, ObjectivesConfig
from pretrain.objectives.views import Views
from pretrain.task import Task
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
def ours() -> Task:
    options = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    model = ModelConfig(
        image_size=32,
        vision=VisionConfig(name="vit_base_patch16_clip_quickgelu_224", options=options),
        text=TextConfig(kind="clip", pooling="last", options={"max_position_embeddings": 12, **SPECIAL, **SHAPE}),
        fusion=FusionConfig(trunk="none"),
        embedding_dim=16,
        projection_bias=False,
    )
    return Task(model, ObjectivesConfig(itc=ITCConfig()), VOCABULARY).eval()


def test_embeddings_loss_and_gradients(ours, theirs):
    sources = copy(ours, CLIP, theirs)
    vision, contrast = ours.model.vision, ours.objectives["itc"]
    generator = torch.Generator().manual_seed(1)
    pixels_BHWC = torch.randint(0, 256, (4, 32, 32, 3), generator=generator, dtype=torch.uint8)
    normal_BCHW = ((pixels_BHWC.float() - vision.mean) / vision.std).permute(0, 3, 1, 2)
    lengths = torch.tensor([12, 5, 9, 7])
    ids_BL = torch.randint(0, 38, (4, 12), generator=generator)
    ids_BL[torch.arange(4), lengths - 1] = EOS
    mask_BL = torch.arange(12) < lengths[:, None]
    ids_BL = torch.where(mask_BL, ids_BL, EOS)

    expected = theirs(input_ids=ids_BL, attention_mask=mask_BL.long(), pixel_values=normal_BCHW, return_loss=True)
    views = Views(ours.model, batch_of(pixels_BHWC, ids_BL, mask_BL), ("text", "image"))
    loss = contrast(views)
    expected.loss.backward()
    loss.backward()

    # Measured: 0, 0, 0 and, of gradients, 1.2e-6.
    assert distance(views.image.embedding_BE, expected.image_embeds) < 1e-5
    assert distance(views.text.embedding_BE, expected.text_embeds) < 1e-5
    assert distance(loss, expected.loss) < 1e-5
    assert worst_gradient(ours, sources) < 5e-5
    assert float(contrast.log_temperature.grad) == pytest.approx(-float(theirs.logit_scale.grad), rel=1e-4)
