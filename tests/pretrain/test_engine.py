"""The step of ZeRO 0 on one rank against plain torch: clipping, and what a step does not train."""

import pytest
import torch

from pretrain.engine import Engine, start_process_group
from pretrain.optim import build_optimizer
from pretrain.task import Task
from tests.pretrain.tiny import VOCABULARY, random_batch, tiny_config

LR = 1e-2


def built(config) -> Task:
    torch.manual_seed(0)
    return Task(config.model, config.objectives, VOCABULARY).train()


@pytest.mark.parametrize("clip", [0.0, 0.5, 1e6])
def test_gradients_are_clipped_as_by_torch(clip):
    config = tiny_config(optim={"name": "sgd", "lr": LR, "weight_decay": 0.0, "clip": clip})
    start_process_group()
    task, plain, batch = built(config), built(config), random_batch(8)
    optimizer = build_optimizer(plain, config.optim)
    engine = Engine(task, config)
    for _ in range(3):
        engine.step(batch, LR)
        plain(batch)["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), clip or torch.inf)
        assert norm > 0.5
        optimizer.step()
        optimizer.zero_grad()
    for (name, mine), other in zip(task.named_parameters(), plain.parameters(), strict=True):
        # Measured: equal where nothing is clipped, else 3e-8.
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_what_a_step_does_not_train_decays_all_the_same():
    """On several ranks the reduction gives it a gradient of zeros, so on one rank it must have that, too."""
    objectives = {"itm": {}, "mlm": {}, "policy": "one", "mix": {"mlm": 1, "itm": 1}}
    config = tiny_config(objectives=objectives, optim={"weight_decay": 0.5})
    start_process_group()
    task = built(config)
    head = dict(task.objectives["itm"].named_parameters())
    before = {name: value.detach().clone() for name, value in head.items()}
    engine = Engine(task, config)
    task.choose(["mlm"])
    engine.step(random_batch(8), LR)
    for name, value in head.items():
        decay = 0.5 if value.ndim > 1 else 0.0
        torch.testing.assert_close(
            value.detach(), before[name] * (1 - LR * decay), msg=lambda m, name=name: f"{name}: {m}"
        )
