"""The order is a permutation in each epoch, mixed, and a function of its arguments alone."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from shards.order import Order, permute

KEYS = np.array([1, 2, 3, 4], dtype=np.uint64)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 100, 1000, 4097])
def test_permute_is_a_bijection(size: int) -> None:
    values = permute(np.arange(size), size, KEYS)
    assert sorted(values) == list(range(size))
    assert size < 10 or (values != np.arange(size)).mean() > 0.9


def test_permute_has_no_visible_order() -> None:
    """Neighbours land anywhere: the mean distance of a random permutation of n is n / 3."""
    values = permute(np.arange(3000), 3000, KEYS)
    assert abs(np.abs(np.diff(values)).mean() / 1000 - 1) < 0.1
    assert abs(np.corrcoef(np.arange(3000), values)[0, 1]) < 0.1


@pytest.mark.parametrize("sizes", [[1], [50], [8] * 6 + [2], [1] * 40, [5, 1, 9, 3] * 20, [1000, 1], [3, 0, 2]])
def test_each_epoch_is_a_permutation(sizes: list[int]) -> None:
    order = Order(sizes, seed=1, fingerprint="f", window=3)
    total = sum(sizes)
    epochs = [order.indices(range(e * total, (e + 1) * total)).tolist() for e in range(4)]
    assert all(sorted(epoch) == list(range(total)) for epoch in epochs)
    assert total < 10 or len(set(map(tuple, epochs))) == 4


def test_any_slice_of_positions_agrees_with_the_whole() -> None:
    order = Order([8] * 6 + [2], seed=0, fingerprint="f", window=2)
    whole = order.indices(range(200)).tolist()
    for start in range(0, 190, 7):
        assert order.indices(range(start, start + 9)).tolist() == whole[start : start + 9]
    assert order.indices(range(5, 5)).tolist() == []
    assert pickle.loads(pickle.dumps(order)).indices(range(200)).tolist() == whole


def test_windows_bound_the_open_shards() -> None:
    order = Order([10] * 40, seed=0, fingerprint="f", window=4)
    indices = order.indices(range(400))
    for start in range(0, 400, 40):
        assert len(set(indices[start : start + 40] // 10)) == 4


def test_seed_and_fingerprint_matter() -> None:
    orders = [Order([100], *arguments).indices(range(100)).tolist() for arguments in ((0, "f"), (1, "f"), (0, "g"))]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_order_is_fixed_for_ever_and_in_fresh_interpreters() -> None:
    """Changing these numbers would break the resume of every running job."""
    program = "from shards.order import Order; print(Order([8] * 5, 7, 'f').indices(range(38, 46)).tolist())"
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        out = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True)
        assert out.stdout.decode().strip() == "[35, 6, 11, 6, 15, 39, 26, 9]"


def test_position_deep_in_a_huge_corpus_is_quick() -> None:
    """400 million samples in 40,000 shards: no list of samples."""
    order = Order([10_000] * 40_000, seed=0, fingerprint="f")
    start = 9 * 40_000 * 10_000 // 10
    assert len(set(order.indices(range(start, start + 1024)).tolist())) == 1024
