"""ALIGN against `transformers.AlignModel`: embeddings, loss with smoothed targets and gradients."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
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
    with torch.no_grad():  # without the statistics of its own signal a random tower maps all images to one vector
        for module in model.vision_model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train().momentum = None
        model.vision_model(torch.rand(64, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2)) * 2 - 1)
    return model.eval()


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


@dataclass(frozen=True)
class Run:
    """What one number format gave: `distance` to theirs of both embeddings and the loss, gradients by our names."""

    apart: tuple[float, float, float]
    worst: float
    ours: dict[str, Tensor]
    theirs: dict[str, Tensor]


def run(dtype: torch.dtype) -> Run:
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
    one, other, *_ = normalize(views.image.embedding_BE)
    assert one @ other < 0.9  # images differ, so gradients are no mere rounding
    expected.loss.backward()
    loss.backward()
    image = distance(views.image.embedding_BE, expected.image_embeds)
    text = distance(views.text.embedding_BE, expected.text_embeds)
    mine = {name: p.grad.double() for name, p in ours.named_parameters() if name in sources and p.grad is not None}
    given = {name: torch.cat([part.grad for part in sources[name]]).double() for name in mine}
    given = {name: grad.reshape(mine[name].shape) for name, grad in given.items()}
    return Run((image, text, distance(loss, expected.loss)), worst_gradient(ours, sources), mine, given)


def far(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The norm of the difference as a share of the norm, over all gradients."""
    difference = sum((found[name] - grad).square().sum() for name, grad in expected.items())
    return float((difference / sum(grad.square().sum() for grad in expected.values())).sqrt())


def test_embeddings_loss_and_gradients():
    short, exact = run(torch.float32), run(torch.float64)
    # Measured, of images, texts and the loss: 3.1e-6, 1.5e-7 and 1.7e-7; in float64 1e-14, 4e-9 and 6e-11, as their
    # softmax runs in float32 whatever the weights are.
    assert max(short.apart) < 1e-5
    assert max(exact.apart) < 1e-7
    # The worst gradient of a parameter: 1.4e-5; in float64 1.8e-6.
    assert short.worst < 1e-4
    assert exact.worst < 1e-5
    # All gradients: 4.7e-6; in float64 5.5e-9. It is rounding: in float32 ours are 4.6e-6 away from those in float64,
    # theirs 4.4e-6.
    assert far(short.ours, short.theirs) < 1e-5
    assert far(exact.ours, exact.theirs) < 1e-7
    assert far(short.ours, exact.ours) < 1.5 * far(short.theirs, exact.ours) + 1e-6
