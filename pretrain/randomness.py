"""The generators of this process that a step draws from: torch's on the CPU and on this rank's accelerator."""

import torch
from torch import Tensor


def random_state() -> dict[str, Tensor]:
    """What `restore_random_state` puts back."""
    state = {"cpu": torch.get_rng_state()}
    if torch.accelerator.is_available():
        state["accelerator"] = torch.get_device_module().get_rng_state()
    return state


def restore_random_state(state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "accelerator" in state and torch.accelerator.is_available():
        torch.get_device_module().set_rng_state(state["accelerator"])
