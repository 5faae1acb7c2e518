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

NO_BLOCKS = "`engine.{}` (=True) matches no layer: the model has no stack of blocks"


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
    if config.compile and not found:
        raise UserError(NO_BLOCKS.format("compile"))
    if config.compile:
        _need_compiler()
    sparing = _sparing(list(found), config.activation_checkpointing)
    for name, block in found.items():
        if config.compile:
            block.forward = torch.compile(block.forward)
        if name in sparing:
            setting = f"`engine.activation_checkpointing` (={config.activation_checkpointing})"
            _refuse_batch_norm(block, setting, "statistics counted twice", name)
            block.forward = recomputed(block.forward)


def _sparing(names: list[str], wanted: bool | list[str]) -> set[str]:
    """The blocks that keep their inputs alone."""
    if wanted is False:
        return set()
    if not names:
        raise UserError(NO_BLOCKS.format("activation_checkpointing"))
    if wanted is True:
        return set(names)
    for prefix in wanted:
        if not any(name.startswith(prefix) for name in names):
            stacks = ", ".join(dict.fromkeys(name.rpartition(".")[0] for name in names))
            raise UserError(f"`engine.activation_checkpointing` (={prefix}) matches no block; blocks are in {stacks}")
    return {name for name in names if name.startswith(tuple(wanted))}


def _need_compiler() -> None:
    """Refuses `torch.compile` where it would fail at the first step."""
    if not any(map(shutil.which, ("g++", "c++", "clang++"))):
        raise UserError("`engine.compile` (=True) needs a C++ compiler, and neither g++, c++ nor clang++ is here")


def _refuse_batch_norm(module: nn.Module, setting: str, reason: str, prefix: str = "") -> None:
    """Layers that mix rows and count what they see cannot run in parts or twice."""
    for name, layer in module.named_modules(prefix=prefix):
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise UserError(f"{setting} needs a model without BatchNorm ({reason}); the first is {name}")
