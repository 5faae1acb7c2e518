"""The only place that knows DeepSpeed: process group, training step, optimizer state.

Works under `deepspeed`, torchrun, Slurm variables set by either, or no launcher at all (one process).
"""

import atexit
import contextlib
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain import distributed
from pretrain.arrange import arrange
from pretrain.batch import Batch
from pretrain.config import EngineConfig, PretrainConfig
from pretrain.ema import Ema
from pretrain.flops import count_uncompiled, counted_as
from pretrain.host import on_host
from pretrain.machine import alone, join_again, keep_memory, repeat_exactly, share_cores, wait_for_gloo
from pretrain.optim import build_optimizer, remembered, set_lr
from pretrain.precision import LossScale
from pretrain.randomness import random_state, restore_random_state
from pretrain.settings import merge
from pretrain.stepped import SILENT, NonFinite, Spike, Stepped, Votes, over_ranks
from pretrain.task import Task
from shards.errors import UserError

os.environ.setdefault("DS_BUILD_OPS", "0")
if not torch.accelerator.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # what it would find out itself, with a warning in every command
import deepspeed  # reads the variable above when imported
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

deepspeed.utils.logger.setLevel(logging.WARNING)

TRAINER_TAG = "engine"
MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")


def start_process_group() -> torch.device:
    """Joins the launcher's group, or makes one of this process alone, and returns this rank's device."""
    accelerator = deepspeed.get_accelerator()
    if not dist.is_initialized():
        if "RANK" not in os.environ:
            os.environ.update(alone())
        _leave_out_shared_memory_op()
        backend = "gloo" if accelerator.device_name() == "cpu" else accelerator.communication_backend_name()
        if restarts := int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")):
            join_again(backend, restarts)
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
        atexit.register(_end_process_group)
        share_cores()
    device = torch.device(accelerator.device_name(int(os.environ.get("LOCAL_RANK", "0"))))
    if device.type == "cpu":
        keep_memory()
        repeat_exactly()
    else:
        accelerator.set_device(device.index)
    return device


class Engine:
    """A task that can take steps.

    Args:
        task: Arranged here as `config.engine` says.

    Attributes:
        flops: Of this rank's part of a step by its objectives, where `rehearse` counted them.
    """

    def __init__(self, task: Task, config: PretrainConfig) -> None:
        self.task = task
        arrange(task, config.engine)
        optimizer = build_optimizer(task, config.optim)
        before = F.linear
        self._engine, *_ = deepspeed.initialize(
            model=task, optimizer=optimizer, config=deepspeed_config(config, distributed.world())
        )
        self._linear, F.linear = (before if F.linear is before else counted_as(before, F.linear)), before
        self._engine.checkpoint_engine = _InMemory()
        self._engine._copy_recovery_script = lambda place: None  # it would be written at once
        self.zero, self.compiles = config.engine.zero, config.engine.compile
        self.flops: dict[tuple[str, ...], int] = {}
        self._optimizer, self._clip = optimizer, config.optim.clip
        if self._plain and distributed.world() == 1:
            self._engine.enable_backward_allreduce = False  # it would copy all gradients to send them to nobody
        self._scale = LossScale() if config.engine.precision == "fp16" else None
        self.ema = None if config.optim.ema is None else Ema(self._engine.module, config.optim.ema)

    def step(self, batch: Batch, lr: float, votes: Votes = SILENT, limit: float = math.inf) -> Stepped:
        """One optimizer step at learning rate `lr`; `votes` are this rank's.

        Raises:
            Spike: the loss is above `limit`, on all ranks alike, before the optimizer moves.
            NonFinite: on all ranks alike, before the optimizer moves. Under fp16, which finds its loss scale by
                skipping steps, a gradient that is not finite is a fault only after many such steps.
        """
        with self._own_linear():
            return self._stepped(batch, lr, votes, limit)

    def _stepped(self, batch: Batch, lr: float, votes: Votes, limit: float) -> Stepped:
        losses = self._engine(batch)
        stepped = over_ranks(losses, votes)
        if sick := [name for name, value in stepped.losses.items() if not math.isfinite(value)]:
            raise NonFinite(f"the loss `{sick[-1]}` is {stepped.losses[sick[-1]]}; the optimizer has not moved")
        if stepped.losses["loss"] > limit:
            loss = stepped.losses["loss"]
            raise Spike(f"the loss is {loss:.6g}, a spike above {limit:.6g}; the optimizer has not moved")
        self._backward(losses["loss"])
        set_lr(self._engine.optimizer, lr)
        moved = self._move()
        if self._scale:
            self._scale.update(moved)
        if not moved and (self._scale is None or self._scale.exhausted):
            raise NonFinite("the gradient is not finite; the optimizer has not moved")
        if moved:
            self.task.end()
        return stepped

    @contextlib.contextmanager
    def _own_linear(self) -> Iterator[None]:
        """Stage 3 needs a linear layer of its own, which DeepSpeed would leave in torch's place for good."""
        before, F.linear = F.linear, self._linear
        try:
            yield
        finally:
            F.linear = before

    def rehearse(self, batch: Batch, largest: Batch) -> None:
        """Takes a step over `largest` with each choice of objectives up to the point where the weights would move.

        Beside it there is room for the moments that the first step makes. Weights, buffers, optimizer and generators
        are as before. Compiled blocks hide their products, so `flops` are then counted over `batch`, not compiled.
        """
        task, random = self.task, random_state()
        buffers = {buffer: buffer.clone() for buffer in task.buffers()}
        chosen, quiet = task.active, deepspeed.utils.logger.level
        room = [torch.empty(size, dtype=torch.uint8, device=device) for device, size in self._moment_bytes().items()]
        deepspeed.utils.logger.setLevel(logging.ERROR)  # DeepSpeed warns of the step that it does not take
        for active in task.choices:
            task.choose(active)
            if self.compiles:
                self.flops[active] = count_uncompiled(task, batch)
            with self._own_linear():
                self._backward(self._engine(largest)["loss"] * math.nan)  # what is not finite moves nothing
                assert not self._move()
        task.choose(chosen)
        deepspeed.utils.logger.setLevel(quiet)
        del room
        for buffer, value in buffers.items():
            buffer.copy_(value)
        restore_random_state(random)

    def _moment_bytes(self) -> dict[torch.device, int]:
        """What the optimizer will keep on each device."""
        found: dict[torch.device, int] = {}
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                found[parameter.device] = found.get(parameter.device, 0) + remembered(group) * parameter.numel() * 4
        return found

    def _backward(self, loss: Tensor) -> None:
        """ZeRO's optimizers take the scale themselves, and take it out of the gradient again before they clip."""
        if self._scale and self._plain:
            loss = loss * self._scale.value
        elif self._scale:
            self._engine.optimizer.override_loss_scale(self._scale.value)
        self._engine.backward(loss)

    @property
    def _plain(self) -> bool:
        """Whether the optimizer is torch's own, as at ZeRO 0."""
        return self._engine.optimizer is self._optimizer

    def _move(self) -> bool:
        """Takes the step unless the reduced gradient, which decides alike on all ranks, is not finite.

        DeepSpeed's own optimizers look at its norm and skip the step with no more than a warning. The plain optimizer
        of ZeRO 0 in fp32 would take it; there each rank holds the whole reduced gradient, so no collective is needed,
        and the norm serves clipping as well.
        """
        if self._plain and not self._clipped():
            self._engine.zero_grad()
            return False
        self._engine.step()
        moved = self._engine.was_step_applied()
        if self.ema and moved:
            self.ema.update()
        return moved

    def _clipped(self) -> bool:
        """Clips the plain optimizer's gradients; False where their norm is not finite.

        A parameter that this step did not train gets zeros, as DeepSpeed's reduction over several ranks makes them.
        """
        trained = [parameter for _, parameter in self._trained()]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        if self._scale:
            torch._foreach_div_(gradients, self._scale.value)
        norm = nn.utils.get_total_norm(gradients).item()  # host sync here
        if self._clip and norm > self._clip and math.isfinite(norm):
            torch._foreach_mul_(gradients, self._clip / (norm + 1e-6))
        return math.isfinite(norm)

    def snapshot(self, folder: Path) -> dict[Path, Any]:
        """Optimizer and engine state in host memory, by the file below `folder` that `torch.save` is to make of it.

        What `load` reads. Writes nothing, so that DeepSpeed's barriers cannot wait for a rank whose disk failed. Every
        rank calls it.
        """
        ours = {"loss_scale": self._scale.state_dict()} if self._scale else {}
        self._engine.save_checkpoint(str(folder), tag=TRAINER_TAG, client_state=ours, save_latest=False)
        return self._engine.checkpoint_engine.taken()

    def load(self, folder: Path) -> None:
        """Restores what `snapshot` gave at the same world size and ZeRO stage; every rank calls it."""
        loaded, ours = self._engine.load_checkpoint(str(folder), tag=TRAINER_TAG)
        if loaded is None:
            raise UserError(f"`{folder}` holds no engine state for this world size and ZeRO stage")
        if self._scale:
            self._scale.load_state_dict(ours["loss_scale"])

    def moments(self, keep: bool = True) -> dict[str, Tensor]:
        """What the optimizer remembers, as NAME/KEY -> float32 of the parameter's shape, on the CPU.

        Whole, whatever the world size and the ZeRO stage, so that `load_parts` can split it anew. Every rank calls it;
        one that does not `keep` them gets none.
        """
        found = {}
        for name, parameter in self._trained():
            for key in MOMENTS:
                if (moment := self._moment(parameter, key)) is not None and keep:
                    found[f"{name}/{key}"] = on_host(moment)
        return found

    def load_parts(self, weights: dict[str, Tensor], moments: dict[str, Tensor], steps: int) -> None:
        """Restores what `weights` and `moments` gave after `steps` steps, at any world size. Every rank calls it."""
        module = self._engine.module
        with deepspeed.zero.GatheredParameters(list(module.parameters()), modifier_rank=0, enabled=self.zero == 3):
            module.load_state_dict(weights)
        self._make_moments({key.rsplit("/", 1)[1] for key in moments})
        for name, parameter in self._trained():
            kept = {key: moments[f"{name}/{key}"] for key in MOMENTS if f"{name}/{key}" in moments}
            kept = {key: value.to(parameter.device) for key, value in kept.items()}
            if self.zero == 0:
                self._optimizer.state[parameter] = {"step": torch.tensor(float(steps)), **kept}
                continue
            self._set(parameter, weights[name].to(parameter.device))
            for key, value in kept.items():
                self._set(parameter, value, key)
        for state in self._optimizer.state.values():
            if "step" in state:
                state["step"].fill_(float(steps))

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self._engine.module.named_parameters() if p.requires_grad]

    def _set(self, parameter: nn.Parameter, value: Tensor, key: str | None = None) -> None:
        """Puts a whole float32 weight, or a moment, where stages 1 to 3 keep their part of it.

        DeepSpeed's own setter of whole values fails at stage 3 where the world size does not divide them.
        """
        set_full, more = deepspeed.utils.safe_set_full_fp32_param, []
        set_part = deepspeed.utils.safe_set_local_fp32_param
        if key is not None:
            set_full, more = deepspeed.utils.safe_set_full_optimizer_state, [key]
            set_part = deepspeed.utils.safe_set_local_optimizer_state
        if self.zero < 3:
            set_full(parameter, value, *more)
            return
        size = -(-value.numel() // distributed.world())
        padded = nn.functional.pad(value.flatten(), (0, size * distributed.world() - value.numel()))
        set_part(parameter, padded[distributed.rank() * size :][:size], *more)

    def _make_moments(self, keys: set[str]) -> None:
        """Zeros where DeepSpeed's optimizers keep moments; they have none before the first step."""
        if self.zero == 3:
            parts = self._engine.optimizer.fp32_partitioned_groups_flat
        else:
            parts = [] if self.zero == 0 else self._engine.optimizer.single_partition_of_fp32_groups
        for part in parts:
            state = self._optimizer.state[part]
            if "exp_avg" in keys:
                state.setdefault("step", torch.tensor(0.0))
            for key in keys:
                state.setdefault(key, torch.zeros_like(part.data))
        self._link_moments()

    def _link_moments(self) -> None:
        """Tells the parameters of stages 1 and 2 where their moments lie.

        DeepSpeed does so after the first step of its first group, when the other groups have none yet.
        """
        if self.zero in (1, 2):
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _moment(self, parameter: nn.Parameter, key: str) -> Tensor | None:
        if self.zero == 0:
            return self._optimizer.state[parameter].get(key)
        if not any(key in state for state in self._optimizer.state.values()):
            return None
        self._link_moments()
        return deepspeed.utils.safe_get_full_optimizer_state(parameter, key)

    def weights(self, keep: bool = True) -> dict[str, Tensor]:
        """The task's parameters and buffers on the CPU, whole. Every rank calls it; without `keep` it gets none."""
        module = self._engine.module
        with deepspeed.zero.GatheredParameters(list(module.parameters()), enabled=self.zero == 3):
            return on_host(dict(module.state_dict())) if keep else {}


class _InMemory(TorchCheckpointEngine):
    """Takes what DeepSpeed would write."""

    def __init__(self) -> None:
        super().__init__()
        self._files: dict[Path, Any] = {}

    def makedirs(self, path: str, exist_ok: bool = False) -> None: ...

    def save(self, state_dict: Any, path: str) -> None:
        self._files[Path(path)] = on_host(state_dict)

    def taken(self) -> dict[Path, Any]:
        """What was saved since the last call."""
        files, self._files = self._files, {}
        return files


def deepspeed_config(config: PretrainConfig, world: int) -> dict[str, Any]:
    """DeepSpeed's dictionary, derived: batch size and precision have their one home in our configuration."""
    derived = {
        "train_batch_size": config.data.global_batch,
        "train_micro_batch_size_per_gpu": config.data.global_batch // world,
        "gradient_clipping": config.optim.clip if config.engine.zero else 0.0,  # the engine clips at stage 0
        "zero_optimization": {"stage": config.engine.zero, **_offload(config.engine.offload)},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # theirs would be compiled at first use
        "steps_per_print": 10**9,
    }
    return merge(derived, config.engine.deepspeed)


def check_accelerator(config: EngineConfig) -> None:
    """Refuses what this machine's accelerator cannot do.

    Raises:
        UserError: names the setting.
    """
    accelerator = deepspeed.get_accelerator()
    if config.precision == "fp16" and not accelerator.is_fp16_supported():
        raise UserError(
            f"`engine.precision` (=fp16) is not for this accelerator (={accelerator.device_name()}): use bf16 or fp32"
        )
    if config.offload != "none" and accelerator.device_name() == "cpu":
        raise UserError(
            f"`engine.offload` (={config.offload}) moves state from an accelerator to the host, and this run has none"
        )


def _offload(what: str) -> dict[str, Any]:
    """DeepSpeed's sections for keeping state on the host."""
    host = {"device": "cpu", "pin_memory": torch.accelerator.is_available()}
    parts = {"none": (), "optimizer": ("offload_optimizer",), "all": ("offload_optimizer", "offload_param")}
    return dict.fromkeys(parts[what], host)


def _end_process_group() -> None:
    """Ends the group while Python still runs, whatever ends the process."""
    if dist.is_initialized():
        deepspeed.comm.destroy_process_group()
    wait_for_gloo()


def _leave_out_shared_memory_op() -> None:
    """DeepSpeed compiles a CPU all-reduce at first use: a C++ compiler and a minute; gloo does without."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
