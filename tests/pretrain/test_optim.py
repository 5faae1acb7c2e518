"""Groups, layer-wise rates and both optimizers against a step worked out by hand."""

import math

import pytest
import torch

from pretrain.config import OptimConfig
from pretrain.optim import build_optimizer, learning_rate, set_lr
from pretrain.settings import merge, parse_config
from pretrain.stacks import blocks, heights
from pretrain.task import Task, outline
from shards.errors import UserError
from tests.pretrain.tiny import VOCABULARY, tiny_config


def deep(trunk: str = "text_queries_image") -> Task:
    """Two image blocks, three text layers, and two layers of the trunk if there is one."""
    changes = {
        "vision": {"options": {"depth": 2}},
        "text": {"options": {"num_hidden_layers": 3}},
        "fusion": {"depth": 2, "trunk": trunk},
    }
    objectives = {"itc": {}} if trunk == "none" else {"itc": {}, "mlm": {}}
    config = tiny_config(model=merge(tiny_config().model.model_dump(), changes), objectives=objectives)
    return outline(config.model, config.objectives, VOCABULARY)


def test_blocks_are_the_layers_of_the_towers():
    assert [name for name, _ in blocks(deep())] == [
        "model.vision.backbone.blocks.0",
        "model.vision.backbone.blocks.1",
        "model.text.bert.encoder.layer.0",
        "model.text.bert.encoder.layer.1",
        "model.text.bert.encoder.layer.2",
        "model.fusion.blocks.0",
        "model.fusion.blocks.1",
    ]


HEIGHTS = {
    "objectives.itc.log_temperature": 0,
    "model.image_projection.weight": 0,
    "model.fusion.blocks.1.norms.0.weight": 1,
    "model.fusion.blocks.0.norms.0.weight": 2,
    "model.vision.backbone.norm.weight": 2,
    "model.vision.backbone.blocks.1.norm1.weight": 3,
    "model.vision.backbone.blocks.0.norm1.weight": 4,
    "model.vision.backbone.pos_embed": 5,
    "model.vision.backbone.patch_embed.proj.bias": 5,
    "model.text.bert.encoder.layer.2.output.dense.weight": 3,
    "model.text.bert.encoder.layer.0.output.dense.weight": 5,
    "model.text.bert.embeddings.word_embeddings.weight": 6,
}


def test_heights_count_the_blocks_up_to_the_heads():
    found = heights(deep())
    assert {name: found[name] for name in HEIGHTS} == HEIGHTS
    alone = heights(deep("none"))  # two layers of the trunk less
    expected = {name: max(0, h - 2) for name, h in HEIGHTS.items() if "fusion" not in name}
    assert {name: alone[name] for name in expected} == expected


def test_layer_decay_and_multipliers_together_set_the_rate():
    task = deep()
    config = OptimConfig(layer_decay=0.5, multipliers={"model.text.": 3.0, "objectives.": 10.0})
    optimizer = build_optimizer(task, config)
    set_lr(optimizer, 2.0)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: rates[id(p)] for name, p in task.named_parameters()}
    assert len(rates) == len(found)
    for name, height in HEIGHTS.items():
        factor = 3.0 if name.startswith("model.text.") else 10.0 if name.startswith("objectives.") else 1.0
        assert found[name] == 2.0 * factor * 0.5**height, name


def test_layer_decay_without_layers_is_refused():
    with pytest.raises(UserError, match=r"`optim\.layer_decay` \(=0\.5\) matches no layer: the model has no stack"):
        build_optimizer(torch.nn.Linear(2, 2), OptimConfig(layer_decay=0.5))


def after(config: OptimConfig, gradients: list[float]) -> float:
    """A weight of 1.0 after steps with these gradients at learning rate 0.1; as a 1 x 1 matrix, so that it decays."""
    layer = torch.nn.Linear(1, 1, bias=False).double()
    layer.weight.data.fill_(1.0)
    optimizer = build_optimizer(layer, config)
    for gradient in gradients:
        layer.weight.grad = torch.full_like(layer.weight, gradient)
        set_lr(optimizer, 0.1)
        optimizer.step()
    return layer.weight.item()


def test_sgd_with_momentum_by_hand():
    velocity, weight = 0.0, 1.0
    for gradient in (2.0, -1.0, 0.5):
        velocity = 0.9 * velocity + gradient + 0.02 * weight
        weight -= 0.1 * velocity
    config = OptimConfig(name="sgd", momentum=0.9, weight_decay=0.02)
    assert after(config, [2.0, -1.0, 0.5]) == pytest.approx(weight, rel=1e-14)


def test_adamw_by_hand():
    mean = square = 0.0
    weight = 1.0
    for step, gradient in enumerate((2.0, -1.0, 0.5), start=1):
        weight -= 0.1 * 0.02 * weight
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.98 * square + 0.02 * gradient**2
        weight -= 0.1 * (mean / (1 - 0.9**step)) / ((square / (1 - 0.98**step)) ** 0.5 + 1e-8)
    assert after(OptimConfig(weight_decay=0.02), [2.0, -1.0, 0.5]) == pytest.approx(weight, rel=1e-12)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"momentum": 0.9}, r"`optim\.momentum` \(=0\.9\) is for `optim\.name` sgd or muon, not adamw"),
        (
            {"name": "sgd", "betas": [0.5, 0.9]},
            r"`optim\.betas` \(=\[0\.5, 0\.9\]\) is for `optim\.name` adamw or muon, not sgd",
        ),
    ],
)
def test_a_setting_of_the_other_optimizer_is_refused(values, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        parse_config(OptimConfig, values)


def test_the_longest_prefix_gives_the_factor():
    task = Task(tiny_config().model, tiny_config().objectives, VOCABULARY)
    config = OptimConfig(multipliers={"model.": 0.5, "model.text.": 0.1}, weight_decay=0.3)
    optimizer = build_optimizer(task, config)
    set_lr(optimizer, 2.0)
    names = {id(p): n for n, p in task.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names.pop(id(parameter))
            factor = 0.1 if name.startswith("model.text.") else 0.5 if name.startswith("model.") else 1.0
            assert group["lr"] == pytest.approx(2 * factor)
            assert group["weight_decay"] == (0.3 if parameter.ndim > 1 else 0.0)
    assert names == {}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.25, 0.5, 0.75, 1.0, 1.0, 0.8, 0.6, 0.4]),
        (
            "cosine",
            [0.25, 0.5, 0.75, 1.0, 1.0, 0.2 + 0.4 * (1 + math.sqrt(0.5)), 0.6, 0.2 + 0.4 * (1 - math.sqrt(0.5))],
        ),
    ],
)
def test_the_learning_rate_by_hand(schedule, expected):
    config = OptimConfig(lr=1.0, final_lr=0.2, warmup_steps=4, schedule=schedule)
    assert [learning_rate(step, 8, config) for step in range(8)] == pytest.approx(expected)
    assert learning_rate(8, 8, config) == pytest.approx(1.0 if schedule == "constant" else 0.2)
