"""Parameter groups and the learning rate as a function of the step."""

import math

import torch
from torch import nn

from pretrain.config import OptimConfig
from pretrain.stacks import heights
from shards.errors import UserError


def freeze(module: nn.Module, prefixes: list[str]) -> None:
    """Stops the training of all parameters whose names start with one of `prefixes`.

    Raises:
        UserError: a prefix that matches no parameter.
    """
    named = list(module.named_parameters())
    for prefix in prefixes:
        chosen = [parameter for name, parameter in named if name.startswith(prefix)]
        if not chosen:
            raise UserError(f"`optim.freeze` (={prefix}) matches no parameter; names start with {_heads(named)}")
        for parameter in chosen:
            parameter.requires_grad_(False)


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW or SGD over groups by learning-rate factor and decay; vectors (biases, norms, temperature) do not decay.

    Each group keeps its factor under `multiplier`, which `set_lr` reads.

    Raises:
        UserError: a prefix in `optim.multipliers` that matches no parameter, a layer decay without layers, or nothing
            to train.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not named:
        raise UserError("`optim.freeze` leaves no parameter to train")
    for prefix in config.multipliers:
        if not any(name.startswith(prefix) for name, _ in named):
            raise UserError(f"`optim.multipliers.{prefix}` matches no parameter; names start with {_heads(named)}")
    layer_factors = _layer_factors(module, config.layer_decay)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        factor = _multiplier(name, config.multipliers) * layer_factors[name]
        decay = config.weight_decay if _dimensions(parameter) > 1 else 0.0
        groups.setdefault((factor, decay), []).append(parameter)
    grouped = [{"params": ps, "multiplier": m, "weight_decay": d} for (m, d), ps in groups.items()]
    if config.name == "sgd":
        return torch.optim.SGD(grouped, lr=config.lr, momentum=config.momentum or 0.0)
    on_cpu = all(parameter.device.type == "cpu" for _, parameter in named)
    fused = True if on_cpu else None  # torch's choice for a CPU is a loop in which each operation passes over memory
    return torch.optim.AdamW(grouped, lr=config.lr, betas=config.betas, fused=fused)


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """The rate of step `step` (from 0) of `steps`: linear warm-up, then the schedule down to `final_lr`."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = min(1.0, (step - config.warmup_steps) / max(1, steps - config.warmup_steps))
    left = 1 - progress if config.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return config.final_lr + (config.lr - config.final_lr) * left


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["multiplier"]


def _multiplier(name: str, multipliers: dict[str, float]) -> float:
    """The longest matching prefix wins."""
    matching = [prefix for prefix in multipliers if name.startswith(prefix)]
    return multipliers[max(matching, key=len)] if matching else 1.0


def _layer_factors(module: nn.Module, decay: float) -> dict[str, float]:
    """Factor by parameter name: `decay` to the number of blocks between it and the heads (BEiT, arXiv:2106.08254)."""
    found = heights(module)
    if decay != 1 and not any(found.values()):
        raise UserError(f"`optim.layer_decay` (={decay}) matches no layer: the model has no stack of blocks")
    return {name: decay**height for name, height in found.items()}


def _dimensions(parameter: nn.Parameter) -> int:
    return len(getattr(parameter, "ds_shape", parameter.shape))


def _heads(named: list[tuple[str, nn.Parameter]]) -> str:
    return ", ".join(sorted({".".join(name.split(".")[:2]) for name, _ in named}))
