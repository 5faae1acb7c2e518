"""Phrases and regions (X-VLM) against code that follows one pair and one cell of the grid at a time."""

import math
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from pretrain.batch import Draw
from pretrain.config import PretrainConfig
from pretrain.data.loader import Preparation, check_inputs
from pretrain.data.masking import IGNORE
from pretrain.data.tokenizer import Tokenizer
from pretrain.models.interface import Encoded, ImageInput, TextInput
from pretrain.objectives.negatives import draw_negatives
from pretrain.objectives.phrases import touched
from pretrain.settings import parse_config
from pretrain.task import Task
from shards.errors import UserError
from shards.reader import ShardSet
from shards.stream import ShardStream
from tests.pretrain.test_objectives import counting
from tests.pretrain.tiny import VOCABULARY, phrase_batch, tiny_config

PAIRS, SIDE = 6, 4


def of_regions(**changes: object) -> PretrainConfig:
    """All objectives on whole images at no weight to speak of, so that what is left is what regions add."""
    objectives = {"itc": {"regions": 1.0}, "itm": {"regions": 1.0, "head": "mlp"}, "mlm": {"regions": 1.0}, "box": {}}
    config = tiny_config(objectives=objectives | changes)
    return config.model_copy(update={"model": config.model.model_copy(update={"image_size": 16 * SIDE})})


def task_of(config: PretrainConfig) -> Task:
    torch.manual_seed(0)
    task = Task(config.model, config.objectives, VOCABULARY).double().eval()
    for parameter in task.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return task


def slow_cells(box_4: torch.Tensor) -> list[int]:
    """The cells whose square the box meets, row by row."""
    left, top, right, bottom = box_4.tolist()
    return [
        row * SIDE + column
        for row, column in product(range(SIDE), range(SIDE))
        if column / SIDE < right and (column + 1) / SIDE > left and row / SIDE < bottom and (row + 1) / SIDE > top
    ]


def test_a_box_touches_the_cells_it_meets():
    boxes = phrase_batch(200).phrase_box_B4
    for box, cells in zip(boxes, touched(boxes, SIDE).flatten(1), strict=True):
        assert cells.nonzero()[:, 0].tolist() == slow_cells(box)
    point = torch.tensor([[1.0, 0.5, 1.0, 0.5]])
    assert touched(point, SIDE).flatten(1).nonzero()[:, 1].tolist() == [2 * SIDE + 3]


@torch.no_grad()
def test_regions_are_contrasted_matched_and_read_one_by_one():
    task, batch = task_of(of_regions()), phrase_batch(PAIRS, image_size=16 * SIDE)
    with_regions = task(batch)
    whole = task_of(tiny_whole())(batch)
    found = {name: float(with_regions[name] - whole[name]) for name in ("itc", "itm", "mlm")}
    model, group = task.model, batch.phrase_group_B
    images = model.encode_image(ImageInput(batch.pixels_BHWC)).tokens_BTD
    cells = [[model.shape.image_prefix + cell for cell in slow_cells(box)] for box in batch.phrase_box_B4]
    tokens = [images[row, places] for row, places in enumerate(cells)]
    region = torch.stack([F.normalize(model.image_projection(part.mean(0)), dim=-1) for part in tokens])
    phrase = model.encode_text(TextInput(batch.phrase_ids_BP, batch.phrase_mask_BP))
    similarity = region @ phrase.embedding_BE.T
    same = (group[:, None] == group).double()
    target = same / same.sum(1, keepdim=True)
    logits = similarity / task.objectives["itc"].temperature
    both = (target * logits.log_softmax(1)).sum(1) + (target * logits.T.log_softmax(1)).sum(1)
    assert found["itc"] == pytest.approx(float(-both.mean() / 2), rel=1e-9)

    def fused(text: Encoded, row: int, part: torch.Tensor):
        mask = torch.ones(1, len(part), dtype=torch.bool)
        return model.fuse(text.rows(slice(row, row + 1)), model.remember(Encoded(part[None], mask)))

    allowed = ~same.bool()
    wrong_text = draw_negatives(similarity / 0.07, allowed, batch.draws_BK[:, Draw.WRONG_TEXT])
    wrong_image = draw_negatives(similarity.T / 0.07, allowed, batch.draws_BK[:, Draw.WRONG_IMAGE])
    pairs = [(row, row, 1) for row in range(PAIRS)]
    pairs += [(int(wrong_text[row]), row, 0) for row in range(PAIRS)]
    pairs += [(row, int(wrong_image[row]), 0) for row in range(PAIRS)]
    head = task.objectives["itm"].head
    terms = [
        head(fused(phrase, text, tokens[image]).pooled_BD).log_softmax(1)[0, label] for text, image, label in pairs
    ]
    assert found["itm"] == pytest.approx(float(-torch.stack(terms).mean()), rel=1e-9)

    masked = model.encode_text(TextInput(batch.phrase_masked_ids_BP, batch.phrase_mask_BP))
    terms = []
    for row in range(PAIRS):
        [place] = (batch.phrase_labels_BP[row] != IGNORE).nonzero()[:, 0].tolist()
        feature = fused(masked, row, tokens[row]).text_BLD[0, place : place + 1]
        log = task.objectives["mlm"].logits(feature, model.word_embedding_VD).log_softmax(1)
        terms.append(log[0, batch.phrase_labels_BP[row, place]])
    assert found["mlm"] == pytest.approx(float(-torch.stack(terms).mean()), rel=1e-9)


def tiny_whole() -> PretrainConfig:
    return of_regions(itc={}, itm={"head": "mlp"}, mlm={})


def test_regions_cost_no_forward_of_their_own(monkeypatch):
    config = of_regions()
    task, calls = task_of(config), Counter[str]()
    for name in ("encode_image", "encode_text", "remember", "fuse"):
        monkeypatch.setattr(task.model, name, counting(calls, name, getattr(task.model, name)))
    task(phrase_batch(PAIRS, image_size=16 * SIDE))
    # Each image is remembered once, whole; both matchings, and all that is read, fuse once.
    assert calls == {"encode_image": 1, "encode_text": 1, "remember": 1, "fuse": 3}


def test_every_parameter_receives_a_gradient():
    task = task_of(of_regions())
    task(phrase_batch(PAIRS, image_size=16 * SIDE))["loss"].backward()
    without = [n for n, p in task.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert [n for n in without if not n.endswith("key.bias")] == []


def test_batches_carry_phrases_of_their_own_regions(configure, corpus):
    config = configure("objectives={itc: {regions: 0.5}, mlm: {regions: 0.5}}")
    preparation = Preparation(config, Tokenizer(config.data.tokenizer))
    (batch,) = ShardStream(corpus.shards, 16, transform=preparation.transform, collate=preparation.collate).batches(1)
    hidden = batch.phrase_labels_BP != IGNORE
    assert (hidden.sum(1) >= 1).all()
    assert torch.equal(batch.phrase_masked_ids_BP[~hidden], batch.phrase_ids_BP[~hidden])
    assert torch.equal(batch.phrase_labels_BP[hidden], batch.phrase_ids_BP[hidden])
    words = [tuple(row[mask].tolist()) for row, mask in zip(batch.phrase_ids_BP, batch.phrase_mask_BP, strict=True)]
    same = [one == other for one, other in product(words, words)]
    assert (batch.phrase_group_B[:, None] == batch.phrase_group_B).flatten().tolist() == same
    assert math.isclose(float(batch.phrase_box_B4.min().clamp(max=0)), 0)


def test_a_sample_without_regions_is_refused(configure, corpus):
    config = configure("objectives={itc: {regions: 0.5}}")
    sample = replace(ShardSet(corpus.shards)[0], regions=(), region_features=None)
    with pytest.raises(UserError, match=r"`objectives\.itc\.regions` needs regions, and sample \S+ has none"):
        check_inputs(config, Tokenizer(config.data.tokenizer), sample)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"objectives": {"itc": {"regions": 1, "loss": "sigmoid"}}},
            r"`objectives\.itc\.regions` \(=1\.0\) takes pooled",
        ),
        (
            {"objectives": {"itm": {"regions": 1, "negatives": "swap"}}},
            r"`objectives\.itm\.regions` \(=1\.0\) takes hard or random negatives, not swap",
        ),
        (
            {"objectives": {"momentum": {}, "mlm": {"regions": 1, "targets": "distilled"}}},
            r"`objectives\.mlm\.regions` \(=1\.0\) takes hard targets, not distilled",
        ),
        (
            {"objectives": {"itc": {"regions": 1}}, "model": {"vision": {"width": 32}}},
            r"`objectives\.itc\.regions` picks image tokens by their place, so `model\.vision` must yield the whole",
        ),
        (
            {"objectives": {"mlm": {"regions": 1}}, "data": {"augment": {"flip": True}}},
            r"`data\.augment\.flip` moves pixels, but not the boxes that `objectives\.mlm\.regions` reads",
        ),
    ],
)
def test_what_does_not_fit_regions_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        parse_config(PretrainConfig, values)
