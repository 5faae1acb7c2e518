"""GPUs by their makers' data sheets: the one table that MFU, and the plan of a run, are reckoned with."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        flops: Dense bfloat16 FLOP/s (half of the figure "with sparsity"), and `flops_fp32` those of plain float32.
        memory: Bytes, and `bandwidth` bytes/s at which they are read or written.
        link: Bytes/s to the other GPUs of its node in each direction (NVLink, or the bus where there is none).
    """

    name: str
    flops: float
    flops_fp32: float
    memory: float
    bandwidth: float
    link: float


GPUS = {
    "b200": Gpu("NVIDIA B200", 2250e12, 75e12, 180e9, 8e12, 900e9),
    "h200": Gpu("NVIDIA H200", 989e12, 67e12, 141e9, 4.8e12, 450e9),
    "h100-pcie": Gpu("NVIDIA H100 PCIe", 756e12, 51e12, 80e9, 2e12, 64e9),
    "h100": Gpu("NVIDIA H100", 989e12, 67e12, 80e9, 3.35e12, 450e9),
    "a100": Gpu("NVIDIA A100", 312e12, 19.5e12, 80e9, 2.04e12, 300e9),
    "l40s": Gpu("NVIDIA L40S", 362e12, 91.6e12, 48e9, 0.86e12, 32e9),
    "l4": Gpu("NVIDIA L4", 121e12, 30.3e12, 24e9, 0.3e12, 32e9),
}
"""Short name -> GPU; the names are the starts of what the driver says, longer ones first."""


def device_name() -> str:
    """What the maker calls this process's device; empty for a CPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def peak_flops(name: str) -> float | None:
    """The peak of a device in FLOP/s of bfloat16, None for one that is not in `GPUS`."""
    return next((gpu.flops for gpu in GPUS.values() if f"{name} ".startswith((f"{gpu.name} ", f"{gpu.name}-"))), None)
