"""Not a test: one rank that takes five steps of every cell of the matrix of its world size, all in one process.

python -m tests.distributed.matrix OUT
Rank 0 writes OUT/SHAPE-MANNER-ZERO.pt: the losses of each step, the weights after the last, and for `sparing` their
moving average, and the same average worked out from the whole weights of each step.
"""

import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch

from pretrain import distributed
from pretrain.batch import Batch
from pretrain.config import PretrainConfig
from pretrain.engine import Engine, start_process_group
from pretrain.settings import merge, parse_config
from pretrain.task import Task
from tests.pretrain.tiny import VOCABULARY, random_batch, region_batch, tiny_config, tiny_joint

PAIRS = 8
STEPS = 5
EMA = 0.9
STAGES = range(4)

DUAL = {"model": {"fusion": {"trunk": "none"}}, "objectives": {"itm": None, "mlm": None}}
SHAPES: dict[str, tuple[dict[str, Any], Callable[..., Batch]]] = {
    "albef": (tiny_config().model_dump(), random_batch),
    "uniter": (
        tiny_joint({"mlm": {}, "mrf": {}, "itm": {"negatives": "random"}}).model_dump(),
        region_batch,
    ),
    "dual": (merge(tiny_config().model_dump(), DUAL), random_batch),
}
"""A configuration of each shape of model, and what makes its batches; a new shape is a line here."""

SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.9}
MANNERS: dict[str, dict[str, Any]] = {
    "adamw": {"optim": {"lr": 3e-3}},
    "sgd": {"optim": SGD},
    "sparing": {"optim": {**SGD, "ema": EMA}, "engine": {"accumulation": 2, "activation_checkpointing": True}},
}
"""How the steps are taken; `sparing` must give what `sgd` gives."""

CELLS = [
    (shape, manner, zero)
    for shape, manner, zero in product(SHAPES, MANNERS, STAGES)
    if manner != "sparing" or shape == "albef"
]


def configuration(shape: str, manner: str, zero: int) -> PretrainConfig:
    values, _ = SHAPES[shape]
    for changes in ({"engine": {"zero": zero}}, MANNERS[manner]):
        values = merge(values, changes)
    return parse_config(PretrainConfig, values)


def trained(config: PretrainConfig, make_batch: Callable[..., Batch]) -> dict[str, Any]:
    """Five steps, each on its own global batch, of which this rank gets its part."""
    torch.manual_seed(0)
    engine = Engine(Task(config.model, config.objectives, VOCABULARY), config)
    averaged = {name: weight.double() for name, weight in engine.weights().items()}
    losses = []
    for step in range(STEPS):
        mine = make_batch(PAIRS, seed=step).split(distributed.world())[distributed.rank()]
        losses.append(engine.step(mine, lr=config.optim.lr).losses)
        if engine.ema:
            weights = engine.weights()
            averaged = {name: EMA * mean + (1 - EMA) * weights[name] for name, mean in averaged.items()}
    found = {"losses": losses, "weights": engine.weights()}
    return found | ({"ema": engine.ema.weights(), "slow_ema": averaged} if engine.ema else {})


if __name__ == "__main__":
    out = Path(sys.argv[1])
    start_process_group()
    for shape, manner, zero in CELLS:
        result = trained(configuration(shape, manner, zero), SHAPES[shape][1])
        if distributed.rank() == 0:
            torch.save(result, out / f"{shape}-{manner}-{zero}.pt")
