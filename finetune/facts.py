"""Where a measured row comes from: checkpoint, data, protocol, machine, versions."""

import importlib.metadata
import os
import platform
from dataclasses import dataclass

import torch

from finetune.results import CheckpointFacts, DataFacts, Stream
from finetune.retrieval import RetrievalSet
from pretrain import distributed
from pretrain.checkpoint import Checkpoint

PACKAGES = ("torch", "timm", "transformers", "numpy")
STREAMS: dict[str, Stream] = {
    "none": "dual",
    "co_attention": "dual",
    "first_added": "dual",
    "text_queries_image": "dual",
    "joint": "single",
    "encoder_decoder": "single",
}
"""The survey's classes by trunk: single-stream where one transformer reads both modalities from the first layer on."""


@dataclass(frozen=True)
class Labels:
    """What people call a row: itself, its data, the dataset it stands under, the published system that it reproduces,
    its pretraining data, the command."""

    name: str
    data: str
    dataset: str
    pretraining_data: str
    command: str
    system: str = ""


def stream_of(checkpoint: Checkpoint) -> Stream:
    """The survey's word for how the modalities meet."""
    return STREAMS[checkpoint.config.model.fusion.trunk]


def checkpoint_facts(checkpoint: Checkpoint) -> CheckpointFacts:
    return CheckpointFacts(
        digest=checkpoint.digest, run=run_name(checkpoint), name=checkpoint.path.name, step=checkpoint.step
    )


def run_name(checkpoint: Checkpoint) -> str:
    """The run folder around RUN/checkpoints/step-N, USER/NAME in a hub's cache, else the checkpoint folder itself."""
    path = checkpoint.path.resolve()
    if path.parent.name == "snapshots":
        return path.parent.parent.name.removeprefix("models--").replace("--", "/")
    return path.parent.parent.name if path.parent.name == "checkpoints" else path.name


def data_facts(data: RetrievalSet, labels: Labels) -> DataFacts:
    return DataFacts(
        name=labels.data,
        dataset=labels.dataset,
        digest=data.source.fingerprint(),
        images=len(data.keys),
        texts=len(data.texts),
    )


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def machine(device: str) -> dict[str, str | int]:
    """The machine that scored; figures do not depend on the number of ranks."""
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "cpu"
    return {"system": platform.machine(), "cpus": os.cpu_count() or 0, "device": name, "ranks": distributed.world()}
