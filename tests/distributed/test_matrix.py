"""World size x ZeRO stage x shape of model x optimizer: the same five steps, and the same average of their weights.

The yardstick is one process at stage 0. Each launch takes all the cells of its world size.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed.matrix import CELLS, SHAPES, STAGES, STEPS
from tests.ranks import run_module

pytestmark = [pytest.mark.slow, pytest.mark.long]
WORLDS = (1, 2, 4)
KEY_BIASES = ("key.bias", "qkv.bias")

# The largest absolute error allowed of a weight, and of a key bias, whose gradient is rounding alone (a softmax does
# not see what all its scores share). Measured: SGD 2.4e-7 and 1.1e-8; AdamW, which makes whole steps of rounding
# wherever a gradient is almost nothing, 2.6e-5 and 6.3e-5. A learning rate 1 % off moves weights by 1.1e-3 (SGD) and
# 2.5e-3 (AdamW).
ALLOWED = {"adamw": (1e-4, 3e-4), "sgd": (2e-6, 1e-6), "sparing": (2e-6, 1e-6)}


@pytest.fixture(scope="module", params=WORLDS)
def world(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all results: WORLD/SHAPE-MANNER-ZERO.pt."""
    root = tmp_path_factory.mktemp("matrix")
    for world in WORLDS:
        (root / str(world)).mkdir()
        ended = run_module("tests.distributed.matrix", root / str(world), world=world, timeout=1200)
        assert ended.status == [0] * world, ended.stderr
    return root


def read(cells: Path, world: int, shape: str, manner: str, zero: int) -> dict[str, Any]:
    return torch.load(cells / str(world) / f"{shape}-{manner}-{zero}.pt", weights_only=True)


def furthest(found: dict[str, Tensor], expected: dict[str, Tensor], key_biases: bool) -> float:
    assert found.keys() == expected.keys()
    chosen = [name for name in expected if name.endswith(KEY_BIASES) == key_biases]
    return max(float((found[name] - expected[name]).abs().max()) for name in chosen)


@pytest.mark.parametrize(("shape", "manner", "zero"), CELLS)
def test_neither_world_nor_stage_changes_the_steps(cells, world, shape, manner, zero):
    expected = read(cells, 1, shape, "sgd" if manner == "sparing" else manner, 0)
    found = read(cells, world, shape, manner, zero)
    assert len(found["losses"]) == STEPS
    for mine, others in zip(found["losses"], expected["losses"], strict=True):
        # Measured: at most 4.2e-7 relative.
        assert mine == pytest.approx(others, rel=2e-6)
    for key_biases, allowed in zip((False, True), ALLOWED[manner], strict=True):
        assert furthest(found["weights"], expected["weights"], key_biases) < allowed


@pytest.mark.parametrize("zero", STAGES)
def test_the_average_is_that_of_the_whole_weights(cells, world, zero):
    """Against plain arithmetic in float64 on gathered weights."""
    found = read(cells, world, "albef", "sparing", zero)
    # Measured: at most 2e-7.
    assert furthest(found["ema"], found["slow_ema"], key_biases=False) < 1e-6
    assert furthest(found["ema"], found["weights"], key_biases=False) > 1e-3


@pytest.mark.parametrize("shape", SHAPES)
def test_the_steps_moved_the_weights(cells, shape):
    """Else all of the above would hold for an engine that does nothing."""
    one, other = (read(cells, 1, shape, manner, 0) for manner in ("sgd", "adamw"))
    assert furthest(one["weights"], other["weights"], key_biases=False) > 1e-2
    assert one["losses"][0]["loss"] - one["losses"][-1]["loss"] > 0.05
