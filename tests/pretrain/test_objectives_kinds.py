"""Objectives on whole models: what they read, what they predict, what they refuse."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pretrain.batch import Draw
from pretrain.config import PretrainConfig
from pretrain.momentum import Momentum
from pretrain.objectives.config import MomentumConfig
from pretrain.objectives.negatives import swap_texts
from pretrain.objectives.views import Views
from pretrain.objectives.wra import inner
from pretrain.policy import draw_entry
from pretrain.settings import parse_config
from pretrain.task import OBJECTIVES, Task
from shards.errors import UserError
from tests.pretrain.test_objectives import counting
from tests.pretrain.tiny import CLASSES, VOCABULARY, random_batch, region_batch, tiny_config, tiny_joint


def task_of(config: PretrainConfig) -> Task:
    torch.manual_seed(0)
    return Task(config.model, config.objectives, VOCABULARY)


def test_texts_are_swapped_half_of_the_time_and_never_within_a_group():
    batch = replace(random_batch(2000), group_B=torch.arange(2000) // 2)
    swap = swap_texts(batch)
    assert float(swap.match_B.float().mean()) == pytest.approx(0.5, abs=0.04)
    assert torch.equal(swap.match_B, swap.source_B == torch.arange(2000))
    assert (batch.group_B[swap.source_B] != batch.group_B)[~swap.match_B].all()


def test_a_batch_of_one_group_is_not_swapped():
    batch = replace(random_batch(6), group_B=torch.zeros(6, dtype=torch.int64))
    assert swap_texts(batch).match_B.all()


@torch.no_grad()
def test_captioning_predicts_each_token_from_those_before_it():
    task, batch = task_of(tiny_config(objectives={"lm": {"label_smoothing": 0.1}})).eval(), random_batch(4)
    views = Views(task.model, batch, ())
    terms = []
    for row in range(4):
        for place in range(1, int(batch.token_mask_BL[row].sum())):
            feature = views.fused_causal.text_BLD[row, place - 1 : place]
            logits = task.objectives["lm"].logits(feature, task.model.word_embedding_VD)
            log = logits[0].log_softmax(0)
            terms.append(-0.9 * log[batch.token_ids_BL[row, place]] - 0.1 * log.mean())
    assert float(task(batch)["lm"]) == pytest.approx(float(torch.stack(terms).mean()), rel=1e-5)


@torch.no_grad()
def test_prefix_modelling_predicts_what_follows_the_prefix():
    task, batch = task_of(tiny_joint({"lm": {"attention": "prefix"}})).eval(), region_batch(6)
    views = Views(task.model, batch, ())
    terms = []
    for row in range(6):
        length = int(batch.token_mask_BL[row].sum())
        given = int(batch.draws_BK[row, Draw.PREFIX] * length)
        for place in range(max(given, 1), length):
            feature = views.fused_prefix.text_BLD[row, place - 1]
            logits = task.objectives["lm"].logits(feature, task.model.word_embedding_VD)
            terms.append(F.cross_entropy(logits, batch.token_ids_BL[row, place]))
    assert float(task(batch)["lm"]) == pytest.approx(float(torch.stack(terms).mean()), rel=1e-5)


def test_the_frame_of_a_text_is_not_aligned():
    mask = torch.tensor([[True, True, True, True], [True, True, True, False]])
    assert inner(mask).tolist() == [[False, True, True, False], [False, True, False, False]]


REGIONS = {"mrf": {}, "mrc": {"classes": CLASSES}, "mra": {"classes": CLASSES}}


def test_masked_regions_read_hidden_features_nowhere():
    """Features of hidden regions change the targets alone: predictions are the same without them."""
    task, batch = task_of(tiny_joint(REGIONS)).eval(), region_batch(5)
    blind = replace(
        batch, region_features_BKF=batch.region_features_BKF.masked_fill(batch.masked_regions_BK[..., None], 9.0)
    )
    for name in REGIONS:
        one, other = (task.objectives[name].predictions(Views(task.model, b, ())) for b in (batch, blind))
        assert torch.equal(one, other)
        assert len(one) == batch.masked_regions_BK.sum()


def test_the_forwards_of_a_uniter_are_shared(monkeypatch):
    config = tiny_joint({"itm": {"negatives": "swap"}, "wra": {}, "mlm": {}, **REGIONS})
    task, calls = task_of(config), Counter()
    for name in ("encode_image", "encode_text", "fuse"):
        monkeypatch.setattr(task.model, name, counting(calls, name, getattr(task.model, name)))
    losses = task(region_batch(4))
    assert calls == {"encode_image": 1, "encode_text": 1, "fuse": 1}
    assert set(losses) == {"loss", "itm", "wra", "mlm", "mrf", "mrc", "mra"}


def test_one_task_a_step_runs_only_what_it_reads(monkeypatch):
    config = tiny_config(objectives={"policy": "one", "mix": {"itc": 1, "mlm+itm": 2}, "itc": {}, "mlm": {}, "itm": {}})
    task, batch = task_of(config), random_batch(4)
    calls: Counter[str] = Counter()
    monkeypatch.setattr(task.model, "fuse", counting(calls, "fuse", task.model.fuse))
    seen = set()
    for step in range(8):
        task.begin(seed=0, step=step)
        before = calls["fuse"]
        losses = frozenset(task(batch)) - {"loss"}
        assert calls["fuse"] - before == (0 if losses == {"itc"} else 2)
        seen.add(losses)
    assert seen == {frozenset({"itc"}), frozenset({"mlm", "itm"})}


def test_tasks_are_drawn_by_their_shares_and_by_seed_and_step_alone():
    mix = {"itm+wra": 9.0, "mlm": 12.0, "mrf": 6.0, "mrc": 6.0}
    drawn = [draw_entry(mix, seed=3, step=step) for step in range(4000)]
    assert drawn == [draw_entry(mix, seed=3, step=step) for step in range(4000)]
    assert drawn != [draw_entry(mix, seed=4, step=step) for step in range(4000)]
    counts = Counter("+".join(names) for names in drawn)
    for entry, share in mix.items():
        assert counts[entry] / 4000 == pytest.approx(share / 33, abs=0.025)


MOMENTUM = {
    "momentum": {"decay": 0.9, "ramp_steps": 4},
    "itc": {"targets": "distilled"},
    "mlm": {"targets": "distilled"},
}


@torch.no_grad()
def test_towers_are_the_running_average_written_out():
    task = task_of(tiny_config(objectives=MOMENTUM))
    assert isinstance(task.momentum, Momentum)
    fast, slow = task.model.text_projection.weight, task.momentum.model.text_projection.weight
    expected = fast.detach().clone()
    assert torch.equal(slow, expected)
    for _ in range(3):
        fast += torch.randn(fast.shape)
        task.end()
        expected = 0.9 * expected + 0.1 * fast.detach()
        torch.testing.assert_close(slow, expected)
    assert float(task.momentum.alpha) == pytest.approx(0.4 * 3 / 4)
    task.start_momentum()
    assert torch.equal(slow, fast)


def test_towers_are_not_trained_and_have_no_dropout():
    task = task_of(tiny_config(objectives=MOMENTUM)).train()
    task(random_batch(4))["loss"].backward()
    assert not any(p.requires_grad or p.grad is not None for p in task.momentum.parameters())
    assert not any(module.training for module in task.momentum.modules())
    assert task.model.training
    assert "itc" not in task.momentum.heads  # it has nothing that is distilled


@torch.no_grad()
def test_distillation_grows_from_hard_targets():
    config = tiny_config(objectives=MOMENTUM)
    task, batch = task_of(config), random_batch(4)
    hard = task_of(tiny_config(objectives={"itc": {}, "mlm": {}}))
    hard.load_state_dict({k: v for k, v in task.state_dict().items() if not k.startswith("momentum.")})
    # Equal towers and no share of the teacher yet: the loss is that of hard targets, word for word.
    assert float(task(batch)["mlm"]) == pytest.approx(float(hard(batch)["mlm"]), rel=1e-6)
    for _ in range(4):
        task.end()
    assert float(task(batch)["mlm"]) != pytest.approx(float(hard(batch)["mlm"]), rel=1e-4)
    constant = Momentum(MomentumConfig(alpha=0.3), task.model, {})
    assert float(constant.alpha) == pytest.approx(0.3)


JOINT = {"trunk": "joint"}
REFUSED = [
    ({"objectives": {"itc": {"queue": 8}}}, r"`objectives\.itc` reads momentum towers"),
    ({"objectives": {"momentum": {}, "itc": {}}}, r"`objectives\.momentum` is read by none"),
    ({"objectives": MOMENTUM, "engine": {"zero": 3}}, r"of which `engine\.zero` \(=3\) leaves each rank a part"),
    ({"objectives": {"itc": {"loss": "sigmoid", "label_smoothing": 0.1}}}, r"`objectives\.itc\.loss` \(=sigmoid\)"),
    ({"objectives": {"itc": {"similarity": "tokens", "queue": 4}}}, r"takes hard targets and no queue"),
    ({"objectives": {"itm": {"negatives": "swap", "pool": "local"}}}, r"`objectives\.itm\.pool` \(=local\)"),
    ({"objectives": {"seq2seq": {}}}, r"`objectives\.mlm` hides, which must be set too"),
    ({"objectives": {"itc": {}, "policy": "one"}}, r"`objectives\.mix` .* if, and only if, `policy` is `one`"),
    ({"objectives": {"itc": {}, "mix": {"itc": 1}}}, r"`objectives\.mix` .* if, and only if, `policy` is `one`"),
    ({"objectives": {"itc": {}, "policy": "one", "mix": {"itm": 1}}}, r"must name the objectives that are set"),
    ({"objectives": {"pollution": {}, "itc": {}}}, r"`objectives\.itc` cannot be trained with it"),
    ({"objectives": {"pollution": {}}}, r"`data\.second` must not be null"),
    ({"objectives": {"pollution": {"kind": "three_way"}}, "data": {"second": "caption"}}, r"must be tags"),
    ({"objectives": {"mrf": {}}}, r"must be one of joint, co_attention"),
    ({"objectives": {"wra": {}}}, r"must be one of joint, co_attention"),
    ({"objectives": {"mlm": {}, "seq2seq": {}}}, r"\(=text_queries_image\) must be joint"),
    ({"objectives": {"mrf": {}}, "model": {"fusion": JOINT}}, r"`data\.regions\.hide` must be more than 0"),
    ({"objectives": {"lm": {}}, "model": {"fusion": {"trunk": "none"}}}, r"`objectives\.lm` reads fused features"),
    (
        {"objectives": {"lm": {"attention": "prefix"}}},
        r"`objectives\.lm\.attention` \(=prefix\) is nothing that `text_q",
    ),
    (
        {"objectives": {"lm": {}}, "model": {"fusion": {"trunk": "first_added"}}},
        r"is nothing that `first_added` can do",
    ),
]


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_what_does_not_fit_together_is_refused_in_a_sentence(values, message):
    with pytest.raises(UserError, match=message):
        parse_config(PretrainConfig, values)


def test_heads_refuse_models_without_what_they_read():
    with pytest.raises(UserError, match=r"drawn by similarity, so `model\.embedding_dim` must not be null"):
        task_of(tiny_joint({"itm": {}}))
    with pytest.raises(UserError, match=r"in a shared space, so `model\.embedding_dim` must not be null"):
        task_of(tiny_joint({"itc": {}}))


def test_every_objective_has_a_section_of_its_name():
    sections = {
        name for name in type(tiny_config().objectives).model_fields if name not in ("policy", "mix", "momentum")
    }
    assert set(OBJECTIVES) == sections


@torch.no_grad()
def test_matching_by_chance_is_log_two_and_local_negatives_stay_on_the_rank():
    task = task_of(tiny_config(objectives={"itm": {"pool": "local"}}))
    torch.nn.init.zeros_(task.objectives["itm"].head.weight)
    torch.nn.init.zeros_(task.objectives["itm"].head.bias)
    assert float(task(random_batch(4))["itm"].detach()) == pytest.approx(math.log(2))
