"""Parameter groups and the learning rate as a function of the step."""

import math
from typing import Any

import torch
from torch import nn

from pretrain.config import OptimConfig
from pretrain.muon import MOMENTUM, Muon
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
    """AdamW, SGD or Muon over groups by learning-rate factor and decay; vectors (biases, norms, temperature) do not
    decay.

    Each group keeps its factor under `multiplier`, which `set_lr` reads.

    Raises:
        UserError: a prefix in `optim.multipliers` or `optim.by_adamw` that matches no parameter, a layer decay without
            layers, or nothing to train.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not named:
        raise UserError("`optim.freeze` leaves no parameter to train")
    settings = [(f"`optim.multipliers.{prefix}`", prefix) for prefix in config.multipliers]
    settings += [(f"`optim.by_adamw` (={prefix})", prefix) for prefix in config.by_adamw]
    for setting, prefix in settings:
        if not any(name.startswith(prefix) for name, _ in named):
            raise UserError(f"{setting} matches no parameter; names start with {_heads(named)}")
    layer_factors = _layer_factors(module, config.layer_decay)
    adaptive = _embeddings(module) | {name for name, _ in named if name.startswith(tuple(config.by_adamw))}
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        factor = _multiplier(name, config.multipliers) * layer_factors[name]
        decay = config.weight_decay if _dimensions(parameter) > 1 else 0.0
        matrices = config.name == "muon" and _dimensions(parameter) > 1 and name not in adaptive
        groups.setdefault((factor, decay, matrices), []).append(parameter)
    grouped = [{"params": ps, "multiplier": m, "weight_decay": d} for (m, d, _), ps in groups.items()]
    if config.name == "muon":
        kinds = [group | {"matrices": matrices} for group, (*_, matrices) in zip(grouped, groups, strict=True)]
        return Muon(kinds, config.lr, config.momentum or MOMENTUM, config.betas)
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


def remembered(group: dict[str, Any]) -> int:
    """Numbers that an optimizer of `build_optimizer` keeps of each element of one of its groups."""
    if group.get("matrices"):
        return 1
    return 2 if "betas" in group else int(group["momentum"] > 0)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["multiplier"]


def _embeddings(module: nn.Module) -> set[str]:
    """Names of tables whose rows are looked up: each row is a vector of its own, not a part of a map."""
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    return {name for name, parameter in module.named_parameters() if id(parameter) in tables}


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
