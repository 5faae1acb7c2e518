"""Activation checkpointing reaches the layers of every kind of encoder and trunk, and changes no gradient."""

from collections import Counter

import pytest
import torch

from pretrain.arrange import arrange
from pretrain.config import EngineConfig, PretrainConfig
from pretrain.settings import parse_config
from pretrain.stacks import TOWERS, blocks
from pretrain.task import Task
from tests.pretrain.tiny import FEATURES, VOCABULARY, random_batch, region_batch

SMALL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 32}
VIT = {"name": "vit_tiny_patch16_224", "options": {"patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}}
SWIN = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2}
TEXT, WORDS = {"options": SMALL | {"num_hidden_layers": 2}}, {"options": SMALL | {"num_hidden_layers": 0}}
REGIONS = {"region": {"features": FEATURES, "width": 32, "box": "box5", "dropout": 0.1}}
TOWER = {"blocks": {"depth": 2, "heads": 2, "dropout": 0.1}, "pooling": "first"}
LAYERS = {"depth": 2, "heads": 2, "hidden": 64, "dropout": 0.1}
KINDS = {
    "vit, bert, text_queries_image": (
        VIT,
        TEXT,
        "text_queries_image",
        {"itc": {}, "itm": {}, "mlm": {}},
        "vision text fusion",
    ),
    "swin, roberta, co_attention": (
        {"name": "swin_tiny_patch4_window7_224", "options": SWIN},
        {"kind": "roberta", "options": SMALL | {"num_hidden_layers": 2, "pad_token_id": 0}},
        "co_attention",
        {"mlm": {}, "itm": {"negatives": "swap"}},
        "vision text fusion",
    ),
    "convnext, clip, none": (
        {"name": "convnext_atto", "options": {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}},
        {"kind": "clip", "pooling": "last", "options": SMALL | {"num_hidden_layers": 2}},
        "none",
        {"itc": {}},
        "vision text",
    ),
    "regions, text tower, first_added": (
        REGIONS | TOWER,
        {**TEXT, "blocks": TOWER["blocks"]},
        "first_added",
        {"itc": {}, "mlm": {}, "mrf": {}},
        "vision text",
    ),
    "patches, words, joint": ({"patch": {"size": 16, "width": 32}}, WORDS, "joint", {"mlm": {}}, "fusion"),
    "patches, words, encoder_decoder": (
        {"patch": {"size": 16, "width": 32}},
        WORDS,
        "encoder_decoder",
        {"lm": {"attention": "prefix"}},
        "fusion",
    ),
}


def configuration(kind: str) -> PretrainConfig:
    vision, text, trunk, objectives, _ = KINDS[kind]
    model = {
        "image_size": 32,
        "vision": vision,
        "text": text,
        "fusion": {"trunk": trunk, **LAYERS},
        "embedding_dim": 16,
    }
    data = {"max_tokens": 16, "regions": {"hide": 0.3} if "region" in vision else None}
    return parse_config(PretrainConfig, {"model": model, "objectives": objectives, "data": data})


@pytest.mark.parametrize("kind", KINDS)
def test_every_tower_is_recomputed_with_the_same_gradients(kind):
    config = configuration(kind)
    batch = region_batch(6) if config.model.vision.region else random_batch(6)
    torch.manual_seed(0)
    task, calls = Task(config.model, config.objectives, VOCABULARY).train(), Counter[str]()
    for name, block in blocks(task):
        inner = block.forward
        block.forward = lambda *a, inner=inner, name=name, **o: (calls.update([name]), inner(*a, **o))[1]

    def gradients() -> dict[str, torch.Tensor]:
        task.zero_grad()
        calls.clear()
        torch.manual_seed(1)
        task(batch)["loss"].backward()
        return {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}

    expected, once = gradients(), Counter(calls)
    arrange(task, EngineConfig(activation_checkpointing=True))
    found = gradients()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert calls == Counter({name: 2 * count for name, count in once.items()})
    reached = [tower for tower in TOWERS if any(name.startswith(f"{tower}.") for name in once)]
    assert [tower.removeprefix("model.") for tower in reached] == KINDS[kind][4].split()
