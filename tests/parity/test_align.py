"""ALIGN against `transformers.AlignModel`: embeddings, loss with smoothed targets and gradients."""

import pytest
import torch
from transformers import AlignConfig, AlignModel

from pretrain.config import PretrainConfig
from pretrain.models.convert.align import NAME, align_table
from pretrain.objectives.views import Views
from pretrain.settings import parse_config
from pretrain.task import Task
from tests.parity.weights import batch_of, copy, distance, shake, worst_gradient

VOCABULARY, SIDE = 40, 64
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
CALM = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def align() -> AlignModel:
    text = {"vocab_size": VOCABULARY, "max_position_embeddings": 12, **BERT, **CALM}
    vision = {"width_coefficient": 1.0, "depth_coefficient": 1.0, "drop_connect_rate": 0.0}
    torch.manual_seed(0)
    model = AlignModel(AlignConfig(text_config=text, vision_config=vision, projection_dim=320))
    shake(model)
    with torch.no_grad():
        for name, buffer in model.named_buffers():  # statistics that are not zero and one
            if name.endswith(("running_mean", "running_var")):
                buffer += torch.linspace(0, 0.1, len(buffer))
    return model


def settings() -> PretrainConfig:
    model = {
        "image_size": SIDE,
        "vision": {"name": NAME.format("b0"), "last_conv": False},
        "text": {"options": BERT | CALM | {"max_position_embeddings": 12}},
        "fusion": {"trunk": "none"},
        "embedding_dim": 320,
        "image_projection": False,
    }
    values = {"model": model, "objectives": {"itc": {"label_smoothing": 0.1}}}
    return parse_config(PretrainConfig, values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_embeddings_loss_and_gradients(dtype):
    theirs, config = align().to(dtype), settings()
    ours = Task(config.model, config.objectives, VOCABULARY).eval().to(dtype)
    sources = copy(ours, align_table(config.model), theirs)
    generator = torch.Generator().manual_seed(1)
    pixels_BHWC = torch.randint(0, 256, (4, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
    ids_BL = torch.randint(5, VOCABULARY, (4, 9), generator=generator)
    mask_BL = torch.arange(9) < torch.tensor([[9], [4], [7], [6]])
    normal_BCHW = (pixels_BHWC.to(dtype) / 127.5 - 1).permute(0, 3, 1, 2)
    inputs = {"input_ids": ids_BL, "attention_mask": mask_BL.long(), "pixel_values": normal_BCHW}
    expected = theirs(**inputs, return_loss=True)
    views = Views(ours.model, batch_of(pixels_BHWC, ids_BL, mask_BL), ("text", "image"))
    loss = ours.objectives["itc"](views)
    expected.loss.backward()
    loss.backward()
    # Measured: 1.8e-7, 1.5e-7, 0 and, of gradients through 16 blocks, 9.4e-5; in float64 3e-16, 4e-9, 8e-13 and, of
    # gradients, 4e-7: their softmax runs in float32 whatever the weights are.
    assert distance(views.image.embedding_BE, expected.image_embeds) < 1e-5
    assert distance(views.text.embedding_BE, expected.text_embeds) < 1e-5
    assert distance(loss, expected.loss) < 1e-5
    assert worst_gradient(ours, sources) < (1e-3 if dtype is torch.float32 else 1e-5)
