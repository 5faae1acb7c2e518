"""A gradient that is not finite on one rank stops all ranks, before any weight has moved."""

import pytest

from tests.ranks import run_module

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("world", [1, 2])
def test_a_poisoned_gradient_stops_every_rank_at_every_stage(corpus, world):
    ended = run_module("tests.faults.poisoned", corpus.config, world=world)
    assert ended.status == [0] * world, ended.stderr
    expected = [f"zero {zero}: the gradient is not finite; the optimizer has not moved: True" for zero in range(4)]
    for text in ended.stdout:
        assert [line for line in text.splitlines() if line.startswith("zero ")] == expected
