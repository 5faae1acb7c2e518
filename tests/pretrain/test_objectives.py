"""Each loss against slow code that a reader can check, and the properties that users rely on."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pretrain.batch import Batch
from pretrain.objectives.itm import matching_loss
from pretrain.objectives.language import word_loss
from pretrain.objectives.negatives import draw_negatives
from pretrain.task import Task
from tests.pretrain.tiny import VOCABULARY, random_batch, tiny_config


def test_negatives_follow_the_softmax_and_never_leave_what_is_allowed():
    similarity = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(20_000, 1)
    allowed = torch.tensor([[False, True, True, True]]).repeat(20_000, 1)
    draws = torch.from_numpy(np.random.default_rng(0).random(20_000))
    counts = Counter(draw_negatives(similarity, allowed, draws).tolist())
    assert counts[0] == 0
    for column, expected in enumerate(torch.tensor([1.0, 0.0, -1.0]).softmax(0).tolist(), start=1):
        assert counts[column] / 20_000 == pytest.approx(expected, abs=0.012)  # 3 standard errors of a share


def test_negatives_at_the_ends_of_the_unit_interval():
    similarity, allowed = torch.zeros(2, 3), torch.tensor([[False, True, True], [True, True, False]])
    draws = torch.tensor([0.0, math.nextafter(1, 0)], dtype=torch.float64)
    assert draw_negatives(similarity, allowed, draws).tolist() == [1, 1]


def test_rows_without_an_allowed_negative_do_not_count():
    logits = torch.tensor([[0.0, 2.0], [5.0, -5.0], [3.0, 0.0]])
    match, valid = torch.tensor([True, True, False]), torch.tensor([True, False, True])
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-3))) / 2
    assert float(matching_loss(logits, match, valid)) == pytest.approx(expected)


def test_a_batch_of_one_group_has_no_negatives_and_still_trains():
    batch = random_batch(4)
    batch = Batch(**{**vars(batch), "group_B": torch.zeros(4, dtype=torch.int64)})
    losses = Task(tiny_config().model, tiny_config().objectives, VOCABULARY)(batch)
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_masked_tokens_are_averaged_over_tokens():
    logits, labels = torch.randn(6, 11), torch.randint(11, (6,))
    assert float(word_loss(logits, labels)) == pytest.approx(float(F.cross_entropy(logits, labels)))
    assert float(word_loss(logits[:0], labels[:0])) == 0


def counting(calls, name, real):
    def counted(*args):
        calls[name] += 1
        return real(*args)

    return counted


def test_the_task_runs_each_forward_once(monkeypatch):
    config = tiny_config()
    task = Task(config.model, config.objectives, VOCABULARY)
    calls: Counter[str] = Counter()
    for name in ("encode_image", "encode_text", "remember", "fuse"):
        monkeypatch.setattr(task.model, name, counting(calls, name, getattr(task.model, name)))
    task(random_batch(4))
    # Images are remembered once, wrong partners being among them; matching and masked words fuse once each.
    assert calls == {"encode_image": 1, "encode_text": 1, "remember": 1, "fuse": 2}


def test_every_parameter_receives_a_gradient():
    config = tiny_config()
    task = Task(config.model, config.objectives, VOCABULARY)
    losses = task(random_batch(6))
    losses["loss"].backward()
    without = [n for n, p in task.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # Attention does not see its key biases: a softmax is unchanged by what all its scores share.
    assert [n for n in without if not n.endswith("key.bias")] == []
