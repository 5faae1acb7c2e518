"""What counts as a spike, and the ledger of batches that a run passes over."""

import math

import pytest

from pretrain.rollback import FEWEST, SpikeGuard, check_budget, quarantine, read_ledger
from pretrain.stepped import NonFinite


def test_a_spike_is_so_many_deviations_above_the_mean():
    guard = SpikeGuard(3)
    for number in range(FEWEST):
        assert guard.limit == math.inf
        guard.add(4.0 + number % 2)
    assert guard.limit == pytest.approx(4.5 + 3 * 0.5)
    again = SpikeGuard(3)
    again.load_state_dict(guard.state_dict())
    assert again.limit == guard.limit


def test_without_a_setting_nothing_is_a_spike():
    guard = SpikeGuard(None)
    for _ in range(2 * FEWEST):
        guard.add(1.0)
    assert guard.limit == math.inf


def test_the_ledger_outlives_the_process_and_is_the_budget(tmp_path):
    sick, saved = NonFinite("the loss is nan"), tmp_path / "step"
    assert read_ledger(tmp_path) == []
    with pytest.raises(NonFinite, match="the loss is nan; there is no checkpoint yet to go back to"):
        check_budget(tmp_path, sick, None, budget=1)
    check_budget(tmp_path, sick, saved, budget=1)
    quarantine(tmp_path, 7, sick)
    assert read_ledger(tmp_path) == [{"batch": 7, "reason": "the loss is nan"}]
    with pytest.raises(NonFinite, match=r"`run\.max_rollbacks` \(=1\) are used up"):
        check_budget(tmp_path, sick, saved, budget=1)
