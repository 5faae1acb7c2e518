"""The true pair against several: draws, mining, and each loss against a slow and obvious one."""

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from pretrain.batch import Draw
from pretrain.objectives.alternatives import (
    circle_ranking,
    margin_ranking,
    score_alternatives,
    softmax_ranking,
)
from pretrain.objectives.config import RankingConfig
from pretrain.objectives.negatives import draw_several
from pretrain.objectives.triplet import triplet_loss
from pretrain.objectives.views import Views
from pretrain.task import Task
from tests.pretrain.tiny import VOCABULARY, random_batch, region_batch, tiny_config, tiny_joint

SCORES = torch.tensor([[0.9, -0.4, 1.3, 0.2], [-1.0, 0.3, 0.1, 2.0], [0.5, 0.6, 0.7, 0.8]])
VALID = torch.tensor([[True, True, True], [True, False, True], [False, False, False]])


def rows() -> list[tuple[float, list[float]]]:
    """The true score and the false ones that count, of rows that have one."""
    return [(float(SCORES[0, 0]), SCORES[0, 1:].tolist()), (float(SCORES[1, 0]), [float(SCORES[1, 1]), 2.0])]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_softmax_is_the_cross_entropy_of_those_that_count():
    slow = [math.log(math.exp(true) + sum(map(math.exp, false))) - true for true, false in rows()]
    assert float(softmax_ranking(SCORES, VALID)) == pytest.approx(sum(slow) / 2)


def test_margin_is_a_mean_over_false_pairs():
    short = [max(0.0, 0.2 + sigmoid(f) - sigmoid(true)) for true, false in rows() for f in false]
    assert float(margin_ranking(SCORES, VALID, 0.2)) == pytest.approx(sum(short) / 5)


def test_circle_as_the_paper_writes_it():
    """Equation 6 with the weights of equation 9, optima 1 + m and -m, and thresholds 1 - m and m."""
    m, scale = 0.3, 32.0
    slow = []
    for true, false in rows():
        s_p, s_n = sigmoid(true), [sigmoid(f) for f in false]
        positive = math.exp(-scale * max(0, 1 + m - s_p) * (s_p - (1 - m)))
        slow.append(math.log(1 + sum(math.exp(scale * max(0, s + m) * (s - m)) for s in s_n) * positive))
    assert float(circle_ranking(SCORES, VALID, m, scale)) == pytest.approx(sum(slow) / 2, rel=1e-5)


@pytest.mark.parametrize("loss", ["softmax", "margin", "circle"])
def test_rows_without_a_false_pair_send_no_gradient(loss):
    """Infinities of rows that do not count must not become NaN on the way back."""
    scores = SCORES.clone().requires_grad_()
    config = RankingConfig(loss=loss)
    values = {
        "softmax": lambda: softmax_ranking(scores, VALID),
        "margin": lambda: margin_ranking(scores, VALID, config.margin),
        "circle": lambda: circle_ranking(scores, VALID, config.margin, config.scale),
    }
    values[loss]().backward()
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()
    assert (scores.grad[2] == 0).all()
    assert scores.grad[1, 2] == 0


def test_draws_do_not_repeat_and_stay_among_the_allowed():
    generator = torch.Generator().manual_seed(0)
    allowed = torch.rand(500, 12, generator=generator) < 0.7
    index, valid = draw_several(torch.zeros(500, 12), allowed, torch.rand(500, generator=generator).double(), 5)
    assert all(len(set(row)) == 5 for row in index.tolist())
    assert torch.equal(valid, allowed.gather(1, index))
    assert torch.equal(valid.sum(1), allowed.sum(1).clamp(max=5))  # the allowed come first


def test_draws_follow_their_probabilities():
    """The first of Gumbel's top k is a draw from the softmax."""
    logits = torch.tensor([0.5, -1.0, 0.0, 1.5, 0.2]).expand(40_000, -1)
    uniform = torch.rand(40_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    index, _ = draw_several(logits, torch.ones_like(logits, dtype=torch.bool), uniform, 1)
    share = torch.bincount(index[:, 0], minlength=5) / 40_000
    torch.testing.assert_close(share, logits[0].softmax(0), rtol=0, atol=0.01)


def test_a_draw_asks_for_more_than_there_is():
    index, valid = draw_several(torch.zeros(2, 3), torch.eye(3)[:2] == 0, torch.tensor([0.1, 0.9]).double(), 15)
    assert index.shape == (2, 3)
    assert valid.sum(1).tolist() == [2, 2]


def scored(task: Task, config: RankingConfig, batch) -> tuple[Tensor, Tensor]:
    return score_alternatives(Views(task.model, batch, ("text", "image")), task.objectives["itm"].match_logit, config)


@torch.no_grad()
@pytest.mark.parametrize("joint", [False, True])
def test_alternatives_are_scored_as_pairs_one_at_a_time(joint):
    """Each score is that of a wrong text, a wrong image or a text of an image that looks alike."""
    kinds = {"texts": 3, "images": 2, "similar": 1}
    objectives = {"itm": {"ranking": kinds}}
    task = _task(tiny_joint(objectives) if joint else tiny_config(objectives=objectives))
    batch = region_batch(7) if joint else random_batch(7)
    score, valid = scored(task, RankingConfig(**kinds), batch)
    assert score.shape == (7, 7)
    assert valid.all()
    every = _every_score(task, batch)
    torch.testing.assert_close(score[:, 0], every.diag())
    for row in range(7):
        assert _are_among(score[row, 1:4], every[row].tolist())  # this image, other texts
        assert _are_among(score[row, 4:6], every[:, row].tolist())  # this text, other images
        assert _are_among(score[row, 6:], every[row].tolist())


@torch.no_grad()
def test_mining_keeps_the_hardest():
    task = _task(tiny_config(objectives={"itm": {"ranking": {"texts": 2, "mined_from": 6}}}))
    batch = random_batch(7)
    score, _ = scored(task, RankingConfig(texts=2, mined_from=6), batch)
    every = _every_score(task, batch).fill_diagonal_(-math.inf)
    torch.testing.assert_close(score[:, 1:], every.topk(2, 1).values, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_false_pairs_are_of_other_groups_and_depend_on_the_draw():
    task = _task(tiny_config(objectives={"itm": {"ranking": {"texts": 4}}}))
    batch = replace(random_batch(6), group_B=torch.tensor([0, 0, 0, 0, 1, 2]))
    _, valid = scored(task, RankingConfig(texts=4), batch)
    assert valid.sum(1).tolist() == [2, 2, 2, 2, 4, 4]
    draws = batch.draws_BK.clone()
    draws[:, Draw.WRONG_TEXT] = draws[:, Draw.WRONG_TEXT].flip(0)
    plain = replace(batch, group_B=torch.arange(6))
    one, other = (scored(task, RankingConfig(texts=1), b)[0] for b in (plain, replace(plain, draws_BK=draws)))
    assert not torch.equal(one[:, 1], other[:, 1])


@torch.no_grad()
def test_a_head_that_ranks_scores_by_its_row_for_a_match():
    task = _task(tiny_config(objectives={"itm": {"ranking": {}}}))
    itm, views = task.objectives["itm"], Views(task.model, random_batch(3), ("fused_clean",))
    assert torch.equal(itm.score(views.fused_clean), itm.head(views.fused_clean.pooled_BD)[:, 1])


@pytest.mark.parametrize("hardest", [True, False])
def test_the_triplet_loss_against_loops(hardest):
    generator = torch.Generator().manual_seed(2)
    image, text = (torch.nn.functional.normalize(torch.randn(6, 4, generator=generator), dim=-1) for _ in range(2))
    group = torch.tensor([0, 1, 2, 0, 3, 4])
    total = 0.0
    for i in range(6):
        for rows_, columns in ((image, text), (text, image)):
            hinges = [
                max(0.0, 0.2 + float(rows_[i] @ columns[j]) - float(image[i] @ text[i]))
                for j in range(6)
                if group[i] != group[j]
            ]
            total += max(hinges) if hardest else sum(hinges)
    assert float(triplet_loss(image, text, group, 0.2, hardest)) == pytest.approx(total / 6, rel=1e-5)


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"texts": 0}, "must draw at least one of"),
        ({"texts": 31, "mined_from": 5}, r"`objectives.itm.ranking.mined_from` \(=5\) must be at least"),
    ],
)
def test_rankings_that_mean_nothing_are_refused(values, rule):
    with pytest.raises(ValidationError, match=rule):
        RankingConfig(**values)


def _task(config) -> Task:
    torch.manual_seed(0)
    return Task(config.model, config.objectives, VOCABULARY).eval()


def _every_score(task: Task, batch) -> Tensor:
    """Row: image, column: text."""
    views = Views(task.model, batch, ("text", "image"))
    columns = []
    for text in range(len(batch)):
        same = torch.full((len(batch),), text)
        fused = task.model.fuse(views.text.rows(same), views.memory)
        columns.append(task.objectives["itm"].match_logit(fused))
    return torch.stack(columns, 1)


def _are_among(values: Tensor, others: list[float]) -> bool:
    return all(any(abs(value - other) < 1e-5 for other in others) for value in values.tolist())
