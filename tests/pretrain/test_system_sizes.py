"""How large the published systems are, counted with code that is not ours: transformers, torch, torchvision.

Each function builds, on the meta device, the modules that the official code names (see the head of each file in
configs/systems), and leaves out what that code makes and never reads.
"""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision.models import efficientnet_b5, resnet50, resnet101
from transformers import (
    AlignConfig,
    AlignModel,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BlipConfig,
    BlipForImageTextRetrieval,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LxmertConfig,
    LxmertModel,
    RobertaConfig,
    RobertaModel,
    SwinConfig,
    SwinModel,
    ViltConfig,
    ViltModel,
    VisualBertConfig,
    VisualBertForPreTraining,
    ViTConfig,
    ViTModel,
)
from transformers.models.bert.modeling_bert import BertLayer

from pretrain.config import PretrainConfig
from pretrain.settings import load_config
from pretrain.systems import count, find_systems
from pretrain.task import outline
from tests.end_to_end.test_shipped_configs import CONFIGS

CASED, F, D = 28996, 2048, 768


def size(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def bert(pooler: bool = True, **changes: int) -> int:
    return size(BertModel(BertConfig(**changes), add_pooling_layer=pooler))


def norm(width: int = D) -> int:
    return 2 * width


def cross_attention(width: int, keys: int, inner: int) -> int:
    """Query, key, value and output with the norm behind them."""
    return size(nn.Linear(width, inner), nn.Linear(keys, 2 * inner), nn.Linear(inner, width)) + norm(width)


def x_vlm_head(outputs: int) -> int:
    return size(nn.Linear(D, 2 * D), nn.LayerNorm(2 * D), nn.Linear(2 * D, outputs))


def align_before_fuse(vision: int, width: int, *heads: int) -> int:
    """ALBEF's shape: BERT with its word head, of which six layers query the image; projections, temperature, heads."""
    text = size(BertForMaskedLM(BertConfig())) + 6 * cross_attention(D, width, D)
    return vision + text + size(nn.Linear(width, 256), nn.Linear(D, 256)) + 1 + sum(heads)


def albef() -> int:
    vision = size(ViTModel(ViTConfig(image_size=256), add_pooling_layer=False))
    return align_before_fuse(vision, D, size(nn.Linear(D, 2)))


def x_vlm() -> int:
    swin = SwinConfig(embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32])
    return align_before_fuse(size(SwinModel(swin, add_pooling_layer=False)), 1024, x_vlm_head(2), x_vlm_head(4))


def brivl() -> int:
    def blocks(width: int) -> nn.Module:
        return nn.TransformerEncoder(nn.TransformerEncoderLayer(width, 4), 4, enable_nested_tensor=False)

    image = size(efficientnet_b5().features, nn.Conv2d(F, F, 1), blocks(F), nn.Linear(F, F), nn.Linear(F, F))
    text = bert(pooler=False, vocab_size=21128) + size(blocks(D), nn.Linear(D, F), nn.Linear(F, F))
    return image + text + 1


def region_embedding(box: int, parts: int) -> int:
    """Linear layers over features and box, `parts` norms and a norm behind."""
    return size(nn.Linear(F, D), nn.Linear(box, D)) + (parts + 1) * norm()


def uniter_image() -> int:
    return region_embedding(7, 2) + F  # the vector of a hidden region


def lightningdot() -> int:
    towers = bert(pooler=False, vocab_size=CASED) + 12 * size(BertLayer(BertConfig())) + uniter_image()
    projection = size(nn.Linear(D, 2 * D), nn.LayerNorm(2 * D), nn.Linear(2 * D, D))
    return towers + 2 * D + 2 * projection  # the class token, the type of regions


def meter() -> int:
    crossing = BertConfig(is_decoder=True, add_cross_attention=True)
    text = size(RobertaModel(RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1), False))
    image = size(CLIPVisionModel(CLIPVisionConfig(patch_size=16, image_size=288, num_hidden_layers=11)))
    return text + image + 12 * size(BertLayer(crossing)) + 4 * size(nn.Linear(D, D)) + 2 * D


def pixel_bert() -> int:
    backbone = resnet50()
    backbone.fc = nn.Identity()
    return size(backbone, nn.Linear(F, D)) + bert() + D


def simvlm() -> int:
    backbone = resnet101()
    backbone.fc = backbone.layer4 = nn.Identity()
    how = {"d_model": D, "nhead": 12, "dim_feedforward": 4 * D, "norm_first": True}
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(**how), 12, nn.LayerNorm(D), enable_nested_tensor=False)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**how), 12, nn.LayerNorm(D))
    return size(backbone, nn.Linear(1024, D), encoder, decoder, nn.Embedding(32000 + 256, D))


def unified_vlp() -> int:
    embedding = size(nn.Linear(F, F), nn.Linear(F, D), nn.Linear(6 + 1601, D))
    return bert(vocab_size=CASED, type_vocab_size=6) + embedding


def vilbert() -> int:
    vision = BertConfig(hidden_size=1024, num_attention_heads=8, intermediate_size=1024)
    image = size(nn.Linear(F, 1024), nn.Linear(5, 1024)) + norm(1024) + 6 * size(BertLayer(vision))

    def side(width: int, other: int, hidden: int) -> int:
        feed = size(nn.Linear(width, hidden), nn.Linear(hidden, width)) + norm(width)
        return cross_attention(width, other, 1024) + feed

    bridges = 6 * (side(1024, D, 1024) + side(D, 1024, 4 * D))
    return bert(pooler=False) + image + bridges + size(nn.Linear(D, 1024), nn.Linear(1024, 1024))


def vl_bert() -> int:
    image = size(nn.Linear(2 * F, D)) + 2 * norm() + F  # norms of what text and objects see, the vector of hidden ones
    return bert(pooler=False, type_vocab_size=3) + image + 4 * D  # [END], what all objects share, aux and mask vectors


COUNTED: dict[str, tuple[str, Callable[[], int]]] = {
    "albef": ("all", albef),
    "align": ("all", lambda: size(AlignModel(AlignConfig()))),
    "blip": (
        "all",
        lambda: size(
            BlipForImageTextRetrieval(
                BlipConfig(text_config={"encoder_hidden_size": D}, vision_config={"image_size": 224})
            )
        ),
    ),
    "brivl": ("all", brivl),
    "clip": ("all", lambda: size(CLIPModel(CLIPConfig()))),
    "filip": ("all", lambda: size(CLIPModel(CLIPConfig(projection_dim=256)))),
    "imagebert": ("model", lambda: bert() + region_embedding(5, 0) + D),
    "lightningdot": ("model", lightningdot),
    "lxmert": ("model", lambda: size(LxmertModel(LxmertConfig()))),
    "meter": ("model", meter),
    "oscar": ("model", lambda: bert() + size(nn.Linear(2054, D))),
    "pixel_bert": ("model", pixel_bert),
    "simvlm": ("model", simvlm),
    "unicoder_vl": ("model", lambda: bert() + region_embedding(5, 0)),
    "unified_vlp": ("model", unified_vlp),
    "uniter": ("model", lambda: bert(vocab_size=CASED) + uniter_image()),
    "vilbert": ("model", vilbert),
    "vilt": ("model", lambda: size(ViltModel(ViltConfig()))),
    "vinvl": ("model", lambda: bert() + size(nn.Linear(2054, D)) + norm()),
    "visualbert": ("all", lambda: size(VisualBertForPreTraining(VisualBertConfig(visual_embedding_dim=F)))),
    "vl_bert": ("model", vl_bert),
    "x_vlm": ("all", x_vlm),
}


def test_every_system_is_counted():
    assert {file.stem for file in find_systems(CONFIGS / "systems")} == set(COUNTED)


@pytest.mark.parametrize("name", COUNTED)
def test_a_system_has_the_size_that_other_code_counts(name):
    """Measured: equal but for 0.35 % of VisualBERT and BLIP, whose heads differ; stated counts are within 0.3 %."""
    part, expected = COUNTED[name]
    config = load_config(PretrainConfig, CONFIGS / "systems" / f"{name}.yaml")
    with torch.device("meta"):
        wanted = expected()
    assert count(outline(config.model, config.objectives, config.system.vocabulary), part) == pytest.approx(
        wanted, rel=0.005
    )
    if config.system.counts == part:
        assert config.system.parameters == pytest.approx(wanted, rel=0.005)
