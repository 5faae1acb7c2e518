"""What is done to a task before the engine wraps it: how it trades time for memory and precision for speed."""

import shutil

import torch
from torch import nn

from pretrain.config import EngineConfig
from pretrain.precision import AUTOCAST
from pretrain.recompute import recomputed
from pretrain.stacks import blocks
from pretrain.task import Task
from shards.errors import UserError


def arrange(task: Task, config: EngineConfig) -> None:
    """Sets the task up as `config` says; also on the meta device, to find out what cannot work.

    Raises:
        UserError: a setting that the model or the machine does not allow.
    """
    if config.accumulation > 1:
        _refuse_batch_norm(task, f"`engine.accumulation` (={config.accumulation})", "statistics of a micro batch")
    task.micro_batches = config.accumulation
    task.autocast = AUTOCAST[config.precision]
    found = dict(blocks(task))
    for name in ("compile", "activation_checkpointing"):
        if getattr(config, name) and not found:
            raise UserError(f"`engine.{name}` (=True) matches no layer: the model has no stack of blocks")
    if config.compile:
        _need_compiler()
    for name, block in found.items():
        if config.compile:
            block.forward = torch.compile(block.forward)
        if config.activation_checkpointing:
            _refuse_batch_norm(block, "`engine.activation_checkpointing` (=True)", "statistics counted twice", name)
            block.forward = recomputed(block.forward)


def _need_compiler() -> None:
    """Refuses `torch.compile` where it would fail at the first step."""
    if not any(map(shutil.which, ("g++", "c++", "clang++"))):
        raise UserError("`engine.compile` (=True) needs a C++ compiler, and neither g++, c++ nor clang++ is here")


def _refuse_batch_norm(module: nn.Module, setting: str, reason: str, prefix: str = "") -> None:
    """Layers that mix rows and count what they see cannot run in parts or twice."""
    for name, layer in module.named_modules(prefix=prefix):
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise UserError(f"{setting} needs a model without BatchNorm ({reason}); the first is {name}")
