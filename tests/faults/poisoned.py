"""Not a test: one rank whose gradient is poisoned on the last rank alone, at each ZeRO stage, while losses are finite.

python -m tests.faults.poisoned FILE
Prints a line for each stage: what stopped this rank, and whether the weights stayed.
"""

import math
import sys

import torch

from pretrain import distributed
from pretrain.config import PretrainConfig
from pretrain.engine import Engine, start_process_group
from pretrain.settings import load_config
from pretrain.stepped import NonFinite
from pretrain.task import Task
from tests.pretrain.tiny import VOCABULARY, random_batch


def poisoned(config: PretrainConfig) -> str:
    task = Task(config.model, config.objectives, VOCABULARY)
    engine = Engine(task, config)
    batch = random_batch(config.data.global_batch // distributed.world(), seed=distributed.rank())
    engine.step(batch, lr=1e-3)
    before = engine.weights()
    if distributed.rank() == distributed.world() - 1:
        task.model.text_projection.weight.register_hook(lambda gradient: gradient * math.nan)
    try:
        engine.step(batch, lr=1e-3)
    except NonFinite as error:
        after = engine.weights()
        return f"{error}: {all(torch.equal(before[name], after[name]) for name in before)}"
    return "nothing stopped it"


if __name__ == "__main__":
    [file] = sys.argv[1:]
    start_process_group()
    for zero in range(4):
        torch.manual_seed(0)
        print(f"zero {zero}:", poisoned(load_config(PretrainConfig, file, [f"engine.zero={zero}"])), flush=True)
