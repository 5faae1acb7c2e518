"""The bank of the corpus's texts: what it holds, the loss by plain loops, and what it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from pretrain.bank import fill_bank
from pretrain.batch import Draw
from pretrain.data.tokenizer import Tokenizer
from pretrain.models.interface import ImageInput, TextInput
from pretrain.objectives.bank import Bank
from pretrain.task import Task
from pretrain.train import check, fit
from shards.errors import UserError
from tests.distributed.tasks import fill_randomly
from tests.pretrain.colours import Colours
from tests.pretrain.runs import interrupted, logged, weights
from tests.pretrain.tiny import VOCABULARY, random_batch, tiny_config

BANK = ("objectives={bank: {dropout: 0.1}}", "optim.freeze=[model.text.]", "data.group_by=colour")


def task_with(**bank: float) -> Task:
    torch.manual_seed(0)
    config = tiny_config(objectives={"bank": bank})
    task = Task(config.model, config.objectives, VOCABULARY).double().eval()
    fill_randomly(task, 11)
    return task


def slow_loss(task: Task, batch, soft: float = 0.0, text_to_image: float = 0.5) -> float:
    """One pair after the other, with the texts that the bank draws."""
    bank = task.objectives["bank"]
    assert isinstance(bank, Bank)
    drawn = bank._drawn(batch.draws_BK)
    features = bank.features_TD[drawn]
    texts = F.normalize(task.model.text_projection(features), dim=-1)
    images = task.model.encode_image(ImageInput(batch.pixels_BHWC)).embedding_BE
    heat = bank.temperature
    alike = F.normalize(features - features.mean(0), dim=-1)
    rows = []
    for image, group in zip(images, batch.group_B.tolist(), strict=True):
        logs = (texts @ image / heat).log_softmax(0)
        opinion = (alike @ alike[group] / 0.05).softmax(0)
        rows.append(-(1 - soft) * logs[group] - soft * (opinion * logs).sum())
    columns = []
    for group in sorted(set(batch.group_B.tolist())):
        logs = (images @ texts[group] / heat).log_softmax(0)
        columns.append(-logs[batch.group_B == group].mean())
    return (torch.stack(rows).mean() + text_to_image * torch.stack(columns).mean()).item()


@pytest.mark.parametrize("settings", [{}, {"soft": 0.3}, {"text_to_image": 0.0}])
def test_the_loss_is_that_of_plain_loops(settings):
    task, batch = task_with(**settings), random_batch(6)
    batch.group_B[4] = batch.group_B[1]  # two drawings of one thing
    assert task(batch)["bank"].item() == pytest.approx(slow_loss(task, batch, **settings), rel=1e-12)


def test_each_step_draws_one_text_of_each_group_by_the_first_pair():
    bank = task_with().objectives["bank"]
    assert isinstance(bank, Bank)
    draws = torch.rand(5, len(Draw), dtype=torch.float64)
    seen = set()
    for step in range(40):
        draws[0, Draw.BANK] = step / 40
        chosen = bank._drawn(draws)
        assert torch.equal(torch.searchsorted(bank.starts_G, chosen, right=True) - 1, torch.arange(11))
        assert torch.equal(chosen, bank._drawn(draws + torch.tensor([[0.0]] + [[0.1]] * 4)))
        seen |= set(chosen.tolist())
    assert seen == set(range(len(bank.features_TD)))


def test_the_bank_holds_what_the_text_encoder_says_of_every_caption(configure):
    config = configure("objectives={bank: {}}", "model.fusion.trunk=none")
    tokenizer = Tokenizer(config.data.tokenizer)
    task = Task(config.model, config.objectives, len(tokenizer))
    fill_bank(task, config, tokenizer, [Colours()])
    assert task.model.training
    bank = task.objectives["bank"]
    assert isinstance(bank, Bank)
    assert bank.counts_G.tolist() == [1, 1, 1, 1]
    for name in ("red", "green", "blue", "yellow"):
        alone = TextInput(*tokenizer.batch([name], config.data.max_tokens))
        expected_1D = task.model.eval().pooled_text(alone)[1]
        assert torch.cdist(expected_1D, bank.features_TD).min() < 1e-5


def test_a_text_encoder_that_is_trained_is_refused(configure):
    with pytest.raises(
        UserError, match=r"^`objectives\.bank` reads each text once, so `optim\.freeze` must hold model"
    ):
        check(configure("objectives={bank: {}}"))


def test_colours_are_learned_from_the_bank_alone(configure, tmp_path):
    """Four groups, four texts: from 1.5 log 4 towards log 2 / 2, as each colour is there twice in a batch of eight."""
    settings = ("run.steps=120", "run.log_every=20", "optim.lr=5e-3", "model.text.pooling=mean")
    fit(configure(*BANK, *settings), Colours())
    assert logged(tmp_path / "run")[-1]["loss/bank"] < 0.5 * math.log(4)


def test_an_interrupted_run_with_a_bank_goes_on_bit_for_bit(configure, tmp_path):
    settings = (*BANK, "run.steps=4", "run.save_every=2", "data.augment={bend: 0.1, blend: 0.5}", "optim.name=muon")
    fit(configure(*settings), Colours())
    copy = interrupted(tmp_path / "run", 2, tmp_path / "copy")
    fit(configure(*settings, f"run.out={copy}", "run.resume=auto"), Colours())
    assert weights(copy, 4).read_bytes() == weights(tmp_path / "run", 4).read_bytes()
    assert not [name for name in load_file(weights(copy, 4)) if "_TD" in name]
