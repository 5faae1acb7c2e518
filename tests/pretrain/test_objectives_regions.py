"""Region losses, transport and boxes against loops that a reader can check."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from pretrain.objectives.boxes import box_loss
from pretrain.objectives.regions import (
    UNKNOWN,
    attribute_loss,
    distribution_loss,
    feature_regression,
    label_loss,
)
from pretrain.objectives.transport import transport_distance, transport_plan
from tests.pretrain.test_objectives_contrast import assert_same


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("kind", ["l2", "smooth_l1"])
def test_features_are_regressed_element_by_element(kind):
    predicted, target = random(3, 4), random(3, 4, seed=1)

    def error(d: Tensor) -> Tensor:
        if kind == "l2":
            return d * d
        return d * d / 2 if abs(d) < 1 else abs(d) - 0.5

    slow = sum(error(predicted[i, j] - target[i, j]) for i in range(3) for j in range(4)) / 12
    assert_same(feature_regression(predicted, target, kind=kind), slow, predicted, target)


def test_labels_that_are_unknown_do_not_count():
    logits, label = random(4, 5), [2, UNKNOWN, 0, UNKNOWN]
    slow = sum(-(logits[i, c].exp() / logits[i].exp().sum()).log() for i, c in enumerate(label) if c != UNKNOWN) / 2
    assert_same(label_loss(logits, torch.tensor(label)), slow, logits)


def test_a_region_counts_once_however_many_attributes_it_has():
    logits, attributes = random(3, 5), [[1, 4, UNKNOWN], [UNKNOWN] * 3, [3, UNKNOWN, UNKNOWN]]
    slow = torch.zeros((), dtype=torch.float64)
    for row, known in zip(logits, attributes, strict=True):
        chosen = [a for a in known if a != UNKNOWN]
        for a in chosen:
            slow = slow - (row[a].exp() / row.exp().sum()).log() / len(chosen) / 2
    assert_same(attribute_loss(logits, torch.tensor(attributes)), slow, logits)


def test_divergence_is_from_the_detector_and_zero_for_its_own_belief():
    logits, belief = random(3, 4), random(3, 4, seed=1).detach().softmax(1)
    belief[0, 0] = 0  # 0 log 0 is 0
    slow = torch.zeros((), dtype=torch.float64)
    for i in range(3):
        for c in range(4):
            if belief[i, c] > 0:
                slow = slow + belief[i, c] * (belief[i, c].log() - logits[i].log_softmax(0)[c]) / 3
    assert_same(distribution_loss(logits, belief), slow, logits)
    assert float(distribution_loss(logits.detach(), logits.detach().softmax(1))) == pytest.approx(0, abs=1e-12)


def slow_plan(cost: np.ndarray, beta: float, iterations: int) -> np.ndarray:
    """IPOT of one pair without padding, entry by entry."""
    rows, columns = cost.shape
    plan, sigma = np.ones_like(cost), np.full(columns, 1 / columns)
    for _ in range(iterations):
        q = np.array([[math.exp(-cost[i, j] / beta) * plan[i, j] for j in range(columns)] for i in range(rows)])
        delta = [1 / rows / sum(q[i, j] * sigma[j] for j in range(columns)) for i in range(rows)]
        sigma = [1 / columns / sum(q[i, j] * delta[i] for i in range(rows)) for j in range(columns)]
        plan = np.array([[delta[i] * q[i, j] * sigma[j] for j in range(columns)] for i in range(rows)])
    return plan


def cheapest(cost: np.ndarray) -> float:
    """The exact optimum as a linear programme."""
    rows, columns = cost.shape
    sums = [np.kron(np.eye(rows), np.ones(columns)), np.kron(np.ones(rows), np.eye(columns))]
    wanted = np.concatenate([np.full(rows, 1 / rows), np.full(columns, 1 / columns)])
    return linprog(cost.ravel(), A_eq=np.concatenate(sums), b_eq=wanted).fun


SIZES = [(3, 4), (1, 5), (6, 2), (6, 6)]


def sets(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    one, other = random(4, 6, 8).to(dtype).detach(), random(4, 6, 8, seed=1).to(dtype).detach()
    mask_one = torch.stack([torch.arange(6) < s for s, _ in SIZES])
    mask_other = torch.stack([torch.arange(6) < t for _, t in SIZES]).flip(1)  # padding may stand anywhere
    return one, other, mask_one, mask_other


def costs(one: Tensor, other: Tensor, mask_one: Tensor, mask_other: Tensor) -> list[np.ndarray]:
    cosine = torch.nn.functional.cosine_similarity(one[:, :, None], other[:, None], dim=-1)
    return [(1 - cosine)[b][mask_one[b]][:, mask_other[b]].numpy() for b in range(len(SIZES))]


def test_the_plan_is_the_one_written_out():
    inputs = sets()
    cosine = torch.nn.functional.cosine_similarity(inputs[0][:, :, None], inputs[1][:, None], dim=-1)
    plan = transport_plan(1 - cosine, *inputs[2:], beta=0.5, iterations=50)
    torch.testing.assert_close(plan.sum((1, 2)), torch.ones(4, dtype=torch.float64))
    for b, cost in enumerate(costs(*inputs)):
        mine = plan[b][inputs[2][b]][:, inputs[3][b]].numpy()
        np.testing.assert_allclose(mine, slow_plan(cost, 0.5, 50), rtol=1e-9, atol=1e-12)


def test_the_distance_is_above_the_optimum_and_comes_to_it():
    inputs = sets()
    exact = [cheapest(cost) for cost in costs(*inputs)]
    near, far = (transport_distance(*inputs, iterations=i).tolist() for i in (500, 50))
    assert near == pytest.approx(exact, abs=1e-4)  # measured: 3e-6
    assert far == pytest.approx(exact, abs=1e-2)  # what UNITER and ViLT train with; measured: 1.4e-3
    assert all(value > best - 1e-6 for value, best in zip(near, exact, strict=True))


def test_the_plan_carries_no_gradient():
    one, other, *masks = sets()
    one.requires_grad_()
    cosine = torch.nn.functional.cosine_similarity(one[:, :, None], other[:, None], dim=-1)
    fixed = (transport_plan(1 - cosine, *masks) * (1 - cosine)).sum((1, 2))
    assert_same(transport_distance(one, other, *masks), fixed, one)


def test_float32_and_an_empty_set_are_no_trouble():
    one, other, mask_one, mask_other = sets(torch.float32)
    mask_one[2] = False
    one.requires_grad_()
    distance = transport_distance(one, other, mask_one, mask_other)
    exact = transport_distance(one.double(), other.double(), mask_one, mask_other)
    torch.testing.assert_close(distance.double(), exact, rtol=0, atol=1e-5)
    assert distance[2] == 0
    distance.sum().backward()
    assert one.grad.isfinite().all()


def test_a_box_is_judged_by_its_sides_and_its_overlap():
    predicted = torch.tensor([[0.5, 0.5, 0.4, 0.2], [0.25, 0.25, 0.5, 0.5], [0.1, 0.1, 0.1, 0.1]])
    true = torch.tensor([[0.3, 0.4, 0.7, 0.6], [0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    valid = torch.tensor([True, True, False])
    # The first is right. The second touches its box at a corner: centres .5 apart in x and y, IoU 0, and of their hull
    # (area 1) the union fills a half, so GIoU is -.5 and its loss 1.5.
    assert float(box_loss(predicted[:1], true[:1], valid[:1])) == pytest.approx(0, abs=1e-5)
    assert float(box_loss(predicted, true, valid)) == pytest.approx((1.0 + 1.5) / 2, abs=1e-5)
