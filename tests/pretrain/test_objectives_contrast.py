"""The losses of contrast against loops that a reader can check, values and gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.objectives import contrast, late_interaction
from pretrain.objectives.contrast import contrastive_loss, group_targets, sigmoid_contrast, soften, softmax_contrast
from pretrain.objectives.late_interaction import query_maximum, token_maximum
from pretrain.objectives.queue import EMPTY, FeatureQueue

GROUPS = [[0, 1, 2, 3, 4], [0, 1, 0, 2, 1]]


def directions(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1).requires_grad_()


def scalar(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64, requires_grad=True)


def assert_same(fast: Tensor, slow: Tensor, *inputs: Tensor) -> None:
    """Equal values and equal gradients; both are sums of the same float64 terms in another order."""
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    weights = torch.arange(1, fast.numel() + 1, dtype=fast.dtype).reshape(fast.shape)  # tells the entries apart
    for a, b in zip(
        torch.autograd.grad((fast * weights).sum(), inputs),
        torch.autograd.grad((slow * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def slow_softmax(logits: Tensor, target: Tensor) -> Tensor:
    total = torch.zeros((), dtype=logits.dtype)
    for row, wanted in zip(logits, target, strict=True):
        log_sum = sum(x.exp() for x in row).log()
        total = total - sum(t * (x - log_sum) for t, x in zip(wanted, row, strict=True) if t > 0)
    return total / len(logits)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_contrast_equals_the_sum_written_out(group, smoothing):
    image, text, temperature = directions(5, 8), directions(5, 8, seed=1), scalar(0.1)
    target = [[(1 - smoothing) * (g == h) / group.count(g) + smoothing / 5 for h in group] for g in group]
    wanted = torch.tensor(target, dtype=torch.float64)
    similarity = torch.stack([torch.stack([i @ t for t in text]) for i in image]) / temperature
    slow = (slow_softmax(similarity, wanted) + slow_softmax(similarity.T, wanted)) / 2
    fast = contrastive_loss(image, text, torch.tensor(group), temperature, label_smoothing=smoothing)
    assert_same(fast, slow, image, text, temperature)


def test_perfect_contrast_is_nothing_and_chance_is_log_n():
    eye, cold = torch.eye(4), torch.tensor([0.01])
    assert float(contrastive_loss(eye, eye, torch.arange(4), cold)) == pytest.approx(0, abs=1e-6)
    same = torch.ones(4, 4) / 2
    assert float(contrastive_loss(same, same, torch.arange(4), cold)) == pytest.approx(math.log(4))


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("columns", [4096, 2])
def test_sigmoid_contrast_equals_the_pairs_written_out(group, columns, monkeypatch):
    monkeypatch.setattr(contrast, "COLUMNS", columns)  # the chunks change nothing
    image, text, temperature, bias = directions(5, 8), directions(5, 8, seed=1), scalar(0.1), scalar(-2.0)
    slow = torch.zeros((), dtype=torch.float64)
    for i in range(5):
        for j in range(5):
            logit = image[i] @ text[j] / temperature[0] + bias[0]
            sign = 1 if group[i] == group[j] else -1
            slow = slow + (1 + (-sign * logit).exp()).log() / 5
    fast = sigmoid_contrast(image, text, torch.tensor(group), temperature, bias)
    assert_same(fast, slow, image, text, temperature, bias)


def masks(items: int, tokens: int) -> Tensor:
    """Items of 1, 2, 3 ... tokens."""
    return torch.arange(tokens) < (torch.arange(items) % tokens + 1)[:, None]


@pytest.mark.parametrize("items", [64, 2])
def test_token_maximum_equals_the_loops(items, monkeypatch):
    monkeypatch.setattr(late_interaction, "ITEMS", items)
    rows, gallery = directions(3, 4, 8), directions(5, 6, 8, seed=1)
    row_mask, gallery_mask = masks(3, 4), masks(5, 6)
    slow = torch.zeros(3, 5, dtype=torch.float64)
    for i in range(3):
        for j in range(5):
            mine, other = rows[i][row_mask[i]], gallery[j][gallery_mask[j]]
            slow[i, j] = sum(max(a @ b for b in other) for a in mine) / len(mine)
    assert_same(token_maximum(rows, row_mask, gallery, gallery_mask), slow, rows, gallery)


def test_query_maximum_equals_the_loops():
    queries, text, mask = directions(3, 4, 8), directions(5, 8, seed=1), masks(3, 4)
    slow = torch.zeros(3, 5, dtype=torch.float64)
    for i in range(3):
        for j in range(5):
            slow[i, j] = max(q @ text[j] for q in queries[i][mask[i]])
    assert_same(query_maximum(queries, mask, text), slow, queries, text)


def test_a_teacher_shares_the_target():
    target = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    teacher = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]], requires_grad=True)
    mixed = soften(target, teacher, torch.tensor([0.4]))
    torch.testing.assert_close(mixed, torch.tensor([[0.6 + 0.1, 0.3], [0.2, 0.6 + 0.2]]))
    assert not mixed.requires_grad


def test_a_soft_target_is_a_mixture_of_hard_ones():
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.rand(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(1)
    mixture = sum(
        (target[:, j] * F.cross_entropy(logits, torch.full((4,), j), reduction="none")).mean() for j in range(6)
    )
    assert float(softmax_contrast(logits, target)) == pytest.approx(float(mixture), rel=1e-12)


def test_empty_columns_are_neither_targets_nor_negatives():
    group, gallery = torch.tensor([3, 4]), torch.tensor([3, 4, 3, EMPTY])
    target = group_targets(group, gallery, 0.3)
    torch.testing.assert_close(target, torch.tensor([[0.45, 0.1, 0.45, 0.0], [0.1, 0.8, 0.1, 0.0]]))
    logits = torch.randn(2, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = softmax_contrast(logits.masked_fill(gallery == EMPTY, -torch.inf), target)
    torch.testing.assert_close(loss, softmax_contrast(logits[:, :3], target[:, :3]))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all()
    assert gradient[:, 3].tolist() == [0, 0]


def test_a_queue_holds_the_newest_items_and_forgets_the_oldest():
    queue, seen = FeatureQueue(5, 2), []
    for step, items in enumerate((3, 1, 4, 7)):
        group = torch.arange(items) + 10 * step
        queue.push(group[:, None].repeat(1, 2), -group[:, None].repeat(1, 2), group)
        seen = [*seen, *group.tolist()][-5:]
        filled = queue.group_Q != EMPTY
        assert sorted(queue.group_Q[filled].tolist()) == sorted(seen)
        assert torch.equal(queue.image_QE[filled, 0], queue.group_Q[filled].float())
        assert torch.equal(queue.text_QE[filled, 1], -queue.group_Q[filled].float())


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_bf16_autocast_does_not_round_similarities(loss):
    image, text = (directions(6, 8, seed=s).detach().float() for s in (0, 1))
    group, cold, bias = torch.arange(6), torch.tensor([0.01]), torch.tensor([-1.0])

    def value() -> float:
        if loss == "softmax":
            return float(contrastive_loss(image, text, group, cold))
        return float(sigmoid_contrast(image, text, group, cold, bias))

    expected = value()
    with torch.autocast("cpu", torch.bfloat16):
        assert value() == expected
