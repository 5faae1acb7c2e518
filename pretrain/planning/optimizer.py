"""What the optimizer costs beside its moments: room for a while, passes over memory, and Muon's products.

Shapes: R rows, C columns.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pretrain.muon import ITERATIONS
from pretrain.optim import remembered

CLIPPED = 3
"""Numbers that the norm of the gradient and clipping read and write of each element."""
PASSES = {"adamw": 20, "sgd": 8}
"""Numbers that an update reads and writes of each element, one operation after the other (foreach); `BUFFERED` more
with a momentum."""
BUFFERED = 5
ADAPTIVE, ORTHOGONAL = (24, 11), (30, 50)
"""Muon's numbers of each element and operations of each parameter: by AdamW, and made orthogonal."""
LAUNCH = 6e-6
"""Seconds until Python has started one more operation."""


@dataclass(frozen=True)
class Group:
    """Parameters that the optimizer treats alike.

    Attributes:
        remembered: Numbers that it keeps of each element.
        matrices: Whether Muon makes their momentum orthogonal.
    """

    shapes: tuple[tuple[int, ...], ...]
    remembered: int
    matrices: bool = False

    @property
    def sizes(self) -> list[int]:
        """Elements of each parameter."""
        return [math.prod(shape) for shape in self.shapes]

    @property
    def elements(self) -> int:
        return sum(self.sizes)


def grouped(groups: Sequence[dict[str, Any]]) -> tuple[Group, ...]:
    """Of the parameter groups of `pretrain.optim.build_optimizer`."""
    return tuple(
        Group(tuple(tuple(p.shape) for p in group["params"]), remembered(group), group.get("matrices", False))
        for group in groups
    )


def temporary(name: str, decay: float, groups: Sequence[Group], updated: int, gpu: bool) -> int:
    """Elements of float32 that an update needs for a while.

    On a GPU torch's optimizers take a whole group at once: AdamW the roots of all second moments, SGD all gradients
    with their decay. On a CPU AdamW needs nothing and SGD goes one tensor after the other, as Muon does everywhere.

    Args:
        name: As `optim.name`, and `decay` as `optim.weight_decay`.
        updated: Elements of the largest tensor (on a CPU) or group (on a GPU) that is updated at once.
    """
    match name:
        case "muon":
            return max(_muon(shape, group.matrices) for group in groups for shape in group.shapes)
        case "sgd":
            return updated if decay else 0
        case _:
            return updated if gpu else 0


def _muon(shape: tuple[int, ...], orthogonal: bool) -> int:
    """Three of the size of a parameter; of a matrix its momentum ahead, beside it in bfloat16 either four of its size
    and its Gram matrix, or two and four Gram matrices."""
    size = math.prod(shape)
    gram = min(_matrix(shape)) ** 2 if orthogonal else 0
    return max(3 * size + gram // 2, 2 * size + 2 * gram)


def products(groups: Sequence[Group]) -> int:
    """FLOPs of Muon's iterations, in bfloat16: X X^T, its square, and their sum times X."""
    found = 0
    for group in groups:
        for shape in group.shapes if group.matrices else ():
            rows, columns = sorted(_matrix(shape))
            found += ITERATIONS * 2 * (2 * rows * rows * columns + rows**3)
    return found


def passes(name: str, groups: Sequence[Group]) -> int:
    """Numbers that clipping and an update of all groups read and write."""
    if name == "muon":
        each = [(ORTHOGONAL if group.matrices else ADAPTIVE)[0] for group in groups]
    else:
        momentum = name == "sgd" and any(group.remembered for group in groups)
        each = [PASSES[name] + BUFFERED * momentum] * len(groups)
    return sum((numbers + CLIPPED) * group.elements for numbers, group in zip(each, groups, strict=True))


def launches(name: str, groups: Sequence[Group]) -> float:
    """Seconds that Python needs to start the operations of an update that goes one parameter after the other."""
    if name != "muon":
        return 0.0
    return LAUNCH * sum(len(group.shapes) * (ORTHOGONAL if group.matrices else ADAPTIVE)[1] for group in groups)


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a parameter, a kernel as one row per output channel."""
    return shape[0], math.prod(shape[1:])
