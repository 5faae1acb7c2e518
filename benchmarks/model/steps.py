"""One training step of two programs, interleaved in one run: times, ratios, and whether they compute the same."""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.model.inputs import Captions
from pretrain.batch import Batch
from pretrain.flops import ProductCount
from tests.parity.weights import distance, worst_gradient

ANNOTATIONS = "annotations/coco_test5k_karpathy_format.json"
CLOSE = {"cpu": (1e-5, 2e-4), "cuda": (1e-2, 0.2)}
"""By how much losses and gradients may differ: rounding of float32, and of bfloat16."""


class Times(NamedTuple):
    """Seconds of a step; those of the processor, summed over threads, do not grow when another program wants it too."""

    wall: float
    processor: float


@dataclass
class Arm:
    """One program.

    Attributes:
        modules: What it trains.
        loss: The number of a batch -> its loss.
    """

    name: str
    modules: Sequence[nn.Module]
    loss: Callable[[int], Tensor]

    def prepare(self, fused: bool) -> None:
        """The same optimizer for all arms, so that the ratio is that of the models."""
        parameters = {id(p): p for module in self.modules for p in module.parameters()}
        self.parameters = list(parameters.values())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-5, fused=fused)

    def step(self, number: int) -> None:
        """Forward, backward, optimizer."""
        self.loss(number).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def parse(description: str | None, sizes: Mapping[str, Any]) -> argparse.Namespace:
    """The options that all of these benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--size", choices=sizes, default="half")
    parser.add_argument("--pairs", type=int, help="the batch; None is that of the size")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu", help="`cuda` multiplies in bfloat16")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument(
        "--plain-optimizer", action="store_true", help="torch's default AdamW in all arms, not the fused"
    )
    parser.add_argument(
        "--annotations", type=Path, default=Path(os.environ.get("DUOSTREAM_TEST_DATA", ".")) / ANNOTATIONS
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    return arguments


def check(ours: Arm, theirs: Arm, task: nn.Module, sources: Mapping[str, list[Tensor]]) -> None:
    """Losses and gradients of the first batch agree, or the times would be those of different work."""
    for module in (*ours.modules, *theirs.modules):
        module.eval()
    found, expected = ours.loss(0), theirs.loss(0)
    found.backward()
    expected.backward()
    off, gradient = distance(found, expected), worst_gradient(task, sources)
    print(f"loss {float(found.detach()):.6f}, apart from {theirs.name} by {off:.1e}; gradients by {gradient:.1e}")
    close, close_gradient = CLOSE[found.device.type]
    assert off < close, (found, expected)
    assert gradient < close_gradient, gradient
    for module in (*ours.modules, *theirs.modules):
        module.zero_grad()
        module.train()


def compare(arguments: argparse.Namespace, arms: Sequence[Arm], captions: Captions, peer: str, shape: str) -> None:
    """Times the arms on one batch after the other and prints the ratio of each to the first."""
    names = ("duostream", "torch", peer)
    print(f"{shape}; {arguments.pairs} pairs, texts of {captions.lengths}; dropout {arguments.dropout}")
    versions = ", ".join(f"{name} {version(name)}" for name in dict.fromkeys(names))
    print(f"{versions}; {arguments.threads} threads on {arguments.device}")
    for arm in arms:
        arm.prepare(not arguments.plain_optimizer)
        arm.step(0)
    products = [_products(arm, arguments.rounds) for arm in arms]
    times: dict[str, list[Times]] = {arm.name: [] for arm in arms}
    for number in range(1, arguments.rounds + 1):
        for arm in arms if number % 2 else reversed(arms):
            times[arm.name].append(_timed(arm, number, arguments.device))
        print(f"round {number}: " + ", ".join(f"{name} {taken[-1].wall * 1e3:.0f} ms" for name, taken in times.items()))
    us = times[arms[0].name]
    for arm, count in zip(arms[1:], products[1:], strict=True):
        pairs = list(zip(times[arm.name], us, strict=True))
        said = _ratios([them.wall / our.wall for them, our in pairs])
        if arguments.device == "cpu":
            said += f"; in time of the processor {_ratios([them.processor / our.processor for them, our in pairs])}"
        print(f"{arm.name} / {arms[0].name}: {said}; in products {count / products[0]:.2f}x")


def _products(arm: Arm, rounds: int) -> int:
    """FLOPs of the matrix products of the steps that will be timed, backward included: what no load can change."""
    with ProductCount() as counted:
        for number in range(1, rounds + 1):
            arm.loss(number)
    return counted.flops


def _ratios(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f}x (median; {min(ratios):.2f}x to {max(ratios):.2f}x)"


def _timed(arm: Arm, number: int, device: str) -> Times:
    _wait(device)
    wall, processor = time.perf_counter(), time.process_time()
    arm.step(number)
    _wait(device)
    return Times(time.perf_counter() - wall, time.process_time() - processor)


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def autocast(arguments: argparse.Namespace) -> torch.autocast:
    """bfloat16 on a GPU, nothing on a CPU; for every arm's loss."""
    return torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.device != "cpu")


def padded_arm(
    arguments: argparse.Namespace,
    peer: nn.Module,
    batches: Sequence[Batch],
    as_theirs: Callable[[Batch, int], Mapping[str, Any]],
    length: int | None,
) -> Arm:
    """A model of transformers that is given its texts padded to `length`, None for each batch's longest."""
    inputs = [as_theirs(batch, length or batch.token_ids_BL.shape[1]) for batch in batches]

    def loss(number: int) -> Tensor:
        with autocast(arguments):
            return peer(**inputs[number]).loss

    return Arm(f"transformers, texts padded to {length or 'the longest'}", [peer], loss)
