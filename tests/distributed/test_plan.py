"""Planned memory against what the tensors of real steps hold at their peak, and planned messages against those sent.

World x ZeRO stage x shape of model; the allocator's own record of all that is allocated and released.
"""

import json

import pytest

from tests.pretrain.memory import CELLS
from tests.ranks import run_module

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module", params=[1, 2])
def told(request):
    """World, what was measured, and what was planned."""
    world = request.param
    measured = run_module("tests.pretrain.memory", "measure", *CELLS, world=world)
    assert measured.status == [0] * world, measured.stderr
    planned = run_module("tests.pretrain.memory", "plan", str(world), *CELLS)
    assert planned.status == [0], planned.stderr
    return world, *(json.loads(ended.stdout[0].splitlines()[-1]) for ended in (measured, planned))


@pytest.mark.parametrize("cell", CELLS)
def test_the_peak_is_within_a_tenth(told, cell):
    _, measured, planned = told
    assert planned[cell]["peak"] == pytest.approx(measured[cell]["peak"], rel=0.1)


@pytest.mark.parametrize("cell", CELLS)
def test_what_is_handed_to_collectives(told, cell):
    """A ring sends these bytes on; losses, norms and votes, some numbers a step, are not planned."""
    world, measured, planned = told
    if world == 2:
        measured, planned = measured[cell]["handed"], planned[cell]["handed"]
        assert planned == pytest.approx({name: measured.get(name, 0) for name in planned}, rel=1e-3, abs=256)
