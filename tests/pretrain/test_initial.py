"""Trunks that start from a BERT or a ViT compute what these compute."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM, BertModel

from pretrain.config import PretrainConfig
from pretrain.models.build import DuoModel, self_contained
from pretrain.models.config import ModelConfig
from pretrain.models.interface import Encoded, ImageInput, TextInput
from pretrain.settings import parse_config
from pretrain.task import outline
from shards.errors import UserError
from tests.pretrain.tiny import VOCABULARY, random_batch

D, LAYERS = 32, 4
TEXT = {"hidden_size": D, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 32}
FUSION = {"heads": 2, "hidden": 64, "eps": 1e-12}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder with a BERT of four layers whose weights are large enough to matter."""
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(vocab_size=VOCABULARY, num_hidden_layers=LAYERS, initializer_range=0.3, **TEXT))
    folder = tmp_path_factory.mktemp("bert")
    model.eval().save_pretrained(folder)
    return folder


def model_of(**sections) -> ModelConfig:
    vision = {"region": {"features": 7, "width": D, "box": "box5"}}
    return ModelConfig(**{"embedding_dim": None, "vision": vision, **sections})


def text_of(folder, layers: int) -> dict:
    return {"weights": str(folder), "options": {"num_hidden_layers": layers}}


@torch.no_grad()
def test_a_joint_trunk_without_regions_is_the_bert(bert):
    fusion = {"trunk": "joint", "depth": LAYERS, "weights": str(bert), **FUSION}
    model = DuoModel(model_of(text=text_of(bert, 0), fusion=fusion), VOCABULARY).eval()
    batch = random_batch(4)
    text = model.encode_text(TextInput(batch.token_ids_BL, batch.token_mask_BL))
    nothing = Encoded(torch.zeros(4, 1, D), torch.zeros(4, 1, dtype=torch.bool))
    found = model.fuse(text, model.remember(nothing)).text_BLD
    expected = BertModel.from_pretrained(bert, add_pooling_layer=False).eval()(
        batch.token_ids_BL, attention_mask=batch.token_mask_BL
    )
    there = batch.token_mask_BL
    # Measured: at most 1e-6.
    torch.testing.assert_close(found[there], expected.last_hidden_state[there], rtol=0, atol=1e-5)


@torch.no_grad()
def test_lower_layers_read_the_text_and_upper_ones_query_the_image(bert):
    """ALBEF: with its cross-attention silenced the model is the whole BERT."""
    fusion = {"trunk": "text_queries_image", "depth": 2, "weights": str(bert), "first_layer": 2, **FUSION}
    model = DuoModel(model_of(text=text_of(bert, 2), fusion=fusion), VOCABULARY).eval()
    batch = random_batch(4)
    text = model.encode_text(TextInput(batch.token_ids_BL, batch.token_mask_BL))
    found = model.fusion.read(text.tokens_BTD, batch.token_mask_BL, causal=False)
    expected = BertModel.from_pretrained(bert, add_pooling_layer=False).eval()(
        batch.token_ids_BL, attention_mask=batch.token_mask_BL
    )
    there = batch.token_mask_BL
    torch.testing.assert_close(found[there], expected.last_hidden_state[there], rtol=0, atol=1e-5)


def test_the_upper_half_goes_between_the_bridges(bert):
    """ViLBERT: text layers take BERT's, bridges and image layers start anew."""
    placement = ["cross", "text", "image", "cross", "text", "image"]
    co = {"placement": placement, "order": ["cross", "feed"]}
    fusion = {"trunk": "co_attention", "co_attention": co, "weights": str(bert), "first_layer": 2, **FUSION}
    model = DuoModel(model_of(text=text_of(bert, 2), fusion=fusion), VOCABULARY)
    theirs = BertModel.from_pretrained(bert).encoder.layer
    for ours, number in ((1, 2), (4, 3)):
        block = model.fusion.blocks[ours]
        assert torch.equal(block.self_attention.query.weight, theirs[number].attention.self.query.weight)
        assert torch.equal(block.feed_forward[3].bias, theirs[number].output.dense.bias)
        assert torch.equal(block.norms[1].weight, theirs[number].output.LayerNorm.weight)
    assert float(model.fusion.blocks[2].self_attention.query.weight.detach().std()) < 0.03


@torch.no_grad()
def test_patches_and_layers_of_a_vit(tmp_path):
    """ViLT: an image without words goes through as through the ViT, also where positions have to stretch."""
    torch.manual_seed(0)
    how = {"patch_size": 8, "embed_dim": D, "depth": LAYERS, "num_heads": 2, "num_classes": 0, "mlp_ratio": 2}
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, **how).eval()
    for parameter in vit.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    place = str(tmp_path / "vit.safetensors")
    vision = {"patch": {"size": 8, "width": D}, "weights": place}
    fusion = {"trunk": "joint", "depth": LAYERS, "norm": "pre", **FUSION, "eps": 1e-6, "weights": place}
    text = {"options": TEXT | {"num_hidden_layers": 0}}
    config = model_of(image_size=32, vision=vision, fusion=fusion, text=text)
    model, batch = DuoModel(config, VOCABULARY).eval(), random_batch(3)
    image = model.encode_image(ImageInput(batch.pixels_BHWC))
    silent = Encoded(torch.zeros(3, 1, D), torch.zeros(3, 1, dtype=torch.bool))
    found = model.fuse(silent, model.remember(image)).image_BND
    normal = (batch.pixels_BHWC.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    torch.testing.assert_close(found, vit.forward_features(normal), rtol=1e-5, atol=1e-5)
    larger = DuoModel(config.model_copy(update={"image_size": 64}), VOCABULARY).vision.positions
    assert larger.shape == (1, D, 8, 8)
    torch.testing.assert_close(larger[..., 0, 0], model.vision.positions[..., 0, 0])


def test_what_travels_names_no_outside_weights(bert):
    fusion = {"trunk": "joint", "depth": 2, "weights": str(bert), "first_layer": 1, **FUSION}
    portable = self_contained(model_of(text=text_of(bert, 0), fusion=fusion))
    assert (portable.fusion.weights, portable.text.weights, portable.vision.weights) == (None, None, None)
    ours = {name: p.shape for name, p in DuoModel(portable, VOCABULARY).named_parameters()}
    assert ours == {
        n: p.shape for n, p in DuoModel(model_of(text=text_of(bert, 0), fusion=fusion), 50).named_parameters()
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"depth": 3, "first_layer": 2},
            r"lacks encoder\.layer\.4\.attention\S+: with `model\.fusion\.first_layer` \(=2\)",
        ),
        (
            {"hidden": 128},
            r"gives `model\.fusion\.blocks\.0\.feed_forward\.0\.weight` shape \[64, 32\], which must be \[128",
        ),
        ({"norm": "pre"}, r"holds a BERT, whose layers are post-norm, and `model\.fusion\.norm` is pre"),
        ({"trunk": "first_added"}, r"fits no layer of `model\.fusion\.trunk` \(=first_added\)"),
        ({"weights": "nowhere"}, r"`model\.fusion\.weights` \(=nowhere\) does not exist"),
        ({"weights": "tests"}, r"`model\.fusion\.weights` \(=tests\) holds none of model\.safetensors"),
    ],
)
def test_weights_that_do_not_fit_are_refused_on_the_meta_device(bert, changes, message):
    fusion = {"trunk": "joint", "depth": 2, "weights": str(bert), **FUSION, **changes}
    data = {"regions": {}}
    values = {"model": model_of(text=text_of(bert, 0), fusion=fusion).model_dump(), "data": data}
    config = parse_config(PretrainConfig, values | {"objectives": {"mlm": {}}})
    with pytest.raises(UserError, match=message):
        outline(config.model, config.objectives, VOCABULARY)
