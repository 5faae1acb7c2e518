"""Not a test: one rank that takes five steps of each shape of model at each ZeRO stage, all in one process.

python -m tests.distributed.matrix OUT
Rank 0 writes OUT/SHAPE-OPTIMIZER-ENGINE-ZERO.pt: the losses of each step, the weights after the last, their average,
and the same average worked out from the whole weights of each step.
"""

import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch

from pretrain import distributed
from pretrain.config import PretrainConfig
from pretrain.engine import Engine, start_process_group
from pretrain.settings import merge
from pretrain.task import Task
from tests.pretrain.tiny import VOCABULARY, random_batch, tiny_config

PAIRS = 8
STEPS = 5
STAGES = range(4)

SHAPES: dict[str, dict[str, Any]] = {
    "albef": {},
    "dual": {"model": {"fusion": {"trunk": "none"}}, "objectives": {"itm": None, "mlm": None}},
}
"""What each shape of model changes in the tiny configuration; a new one is a line here."""

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"lr": 3e-3},
    "sgd": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
}

ENGINES: dict[str, dict[str, Any]] = {
    "plain": {},
    "sparing": {"accumulation": 2, "activation_checkpointing": True},
}
"""How else the engine takes its steps; it leaves the numbers alone."""

EMA = 0.9


def configuration(shape: str, optimizer: str, engine: str, zero: int) -> PretrainConfig:
    changes = merge({"optim": {"ema": EMA, **OPTIMIZERS[optimizer]}}, SHAPES[shape])
    changes = merge(changes, {"engine": {"zero": zero, **ENGINES[engine]}})
    return tiny_config(**merge(tiny_config().model_dump(), changes))


def trained(config: PretrainConfig) -> dict[str, Any]:
    """Five steps, each on its own global batch, of which this rank gets its part."""
    torch.manual_seed(0)
    engine = Engine(Task(config.model, config.objectives, VOCABULARY), config)
    averaged = {name: weight.double() for name, weight in engine.weights().items()}
    losses = []
    for step in range(STEPS):
        mine = random_batch(PAIRS, seed=step).split(distributed.world())[distributed.rank()]
        losses.append(engine.step(mine, lr=config.optim.lr).losses)
        weights = engine.weights()
        averaged = {name: EMA * mean + (1 - EMA) * weights[name] for name, mean in averaged.items()}
    assert engine.ema
    return {"losses": losses, "weights": weights, "ema": engine.ema.weights(), "slow_ema": averaged}


if __name__ == "__main__":
    out = Path(sys.argv[1])
    start_process_group()
    for shape, optimizer, engine, zero in product(SHAPES, OPTIMIZERS, ENGINES, STAGES):
        result = trained(configuration(shape, optimizer, engine, zero))
        if distributed.rank() == 0:
            torch.save(result, out / f"{shape}-{optimizer}-{engine}-{zero}.pt")
