"""What nobody reads is left out of the last layer: the same losses and gradients as with all of it."""

from dataclasses import replace

import pytest
import torch

from pretrain.config import PretrainConfig
from pretrain.models.packing import Narrow, Packing
from pretrain.objectives.views import Look, Views
from pretrain.settings import parse_config
from pretrain.task import Task
from tests.pretrain.tiny import VOCABULARY, random_batch, tiny_config

JOINT = {"trunk": "joint", "depth": 2, "heads": 2, "types": True}
TRUNKS = {
    "joint, post": JOINT,
    "joint, pre, tanh": JOINT | {"norm": "pre", "pooler": "tanh"},
    "joint, both sides pooled": JOINT | {"norm": "pre", "pooler": "concatenate"},
    "joint, multiway": JOINT | {"norm": "pre", "multiway": True},
    "text queries image, post": {"depth": 2, "heads": 2},
    "text queries image, pre": {"depth": 2, "heads": 2, "norm": "pre"},
}
KINDS = {
    "hard": {"itc": {}, "itm": {}, "mlm": {}},
    "swapped": {"itm": {"negatives": "swap"}, "mlm": {}},
    "aligned": {"itm": {"negatives": "swap"}, "mlm": {}, "wra": {"iterations": 5}},
    "distilled": {"itc": {"targets": "distilled"}, "mlm": {"targets": "distilled"}, "momentum": {"decay": 0.9}},
}


def make(trunk: str, kind: str, accumulation: int = 1) -> Task:
    values = tiny_config().model_dump(mode="json")
    values["model"]["fusion"] = TRUNKS[trunk]
    values["objectives"] = KINDS[kind]
    config = parse_config(PretrainConfig, values)
    torch.manual_seed(0)
    task = Task(config.model, config.objectives, VOCABULARY).double()
    task.micro_batches = accumulation
    return task


def losses_and_gradients(task: Task):
    task.zero_grad()
    losses = task(random_batch(6))
    losses["loss"].backward()
    return losses, {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


CASES = [(trunk, kind, 1) for trunk in TRUNKS for kind in KINDS if kind != "aligned" or "joint" in trunk]
CASES += [
    (trunk, kind, 2) for trunk in ("joint, pre, tanh", "text queries image, post") for kind in ("hard", "distilled")
]


@pytest.mark.parametrize(("trunk", "kind", "accumulation"), CASES)
def test_a_narrow_last_layer_changes_nothing(trunk, kind, accumulation, monkeypatch):
    task = make(trunk, kind, accumulation)
    narrow, gradients = losses_and_gradients(task)
    real, read = task.model.fuse, []

    def whole(text, *more):
        read.append(text.read_BT)
        return real(replace(text, read_BT=None), *more)

    monkeypatch.setattr(task.model, "fuse", whole)
    wide, expected = losses_and_gradients(task)
    assert read
    assert (kind == "aligned") == all(tokens is None for tokens in read)
    for name, loss in wide.items():
        torch.testing.assert_close(narrow[name], loss, rtol=1e-12, atol=0)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        # Measured: at most 3e-16 where gradients are around 1, in float64.
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-9, atol=1e-12)


def test_a_narrow_packing_says_which_tokens_stay():
    packing = Packing.of(torch.tensor([[True, True, True, False], [True, False, True, True]]))
    keep = torch.tensor([[True, False, True, True], [False, False, False, True]])
    narrow = Narrow.of(packing, keep)
    x_BTD = torch.randn(2, 4, 3)
    assert narrow.keep_Q.tolist() == [0, 2, 5]
    assert narrow.queries.mask_BT.tolist() == [[True, True], [True, False]]
    kept = packing.pack(x_BTD)[narrow.keep_Q]
    assert torch.equal(kept, x_BTD[keep & packing.mask_BT])
    assert torch.equal(narrow.kept.pad(kept), torch.where((keep & packing.mask_BT)[..., None], x_BTD, 0))


@torch.no_grad()
@pytest.mark.parametrize("text", ["clean", "masked"])
def test_pollution_is_judged_in_the_forward_that_it_names(text, monkeypatch):
    """With masked words it shares theirs; the clean text costs one more text in it."""
    values = tiny_config().model_dump(mode="json")
    values["model"]["fusion"], values["data"]["second"] = JOINT, "caption"
    values["objectives"] = {"mlm": {}, "pollution": {"text": text}}
    config = parse_config(PretrainConfig, values)
    task = Task(config.model, config.objectives, VOCABULARY).double()
    batch = replace(random_batch(4), pollution_B=torch.tensor([0, 1, 1, 0]))
    real, rows = task.model.fuse, []
    monkeypatch.setattr(task.model, "fuse", lambda text, *more: rows.append(len(text.mask_BT)) or real(text, *more))
    loss = task(batch)["pollution"]
    assert rows == [{"clean": 8, "masked": 4}[text]]
    view = {"clean": "fused_clean", "masked": "fused_masked_text"}[text]
    logits_B2 = task.objectives["pollution"].head(getattr(Views(task.model, batch, ()), view).pooled_BD)
    expected = torch.nn.functional.cross_entropy(logits_B2, torch.tensor([0, 1, 1, 0]))
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


@torch.no_grad()
def test_the_most_that_any_objective_reads_counts():
    model, batch = make("joint, post", "swapped").model, random_batch(4)
    looks = {"fused_clean": Look.PAIR, "fused_masked_text": Look.HIDDEN_WORDS}
    some, every = Views(model, batch, looks, looks=looks), Views(model, batch, ())
    hidden = batch.masked_labels_BL != -100
    words = some.fused_masked_text.text_BLD
    torch.testing.assert_close(words[hidden], every.fused_masked_text.text_BLD[hidden], rtol=0, atol=1e-12)
    assert not words[:, 1:][~hidden[:, 1:]].any()
    torch.testing.assert_close(some.fused_clean.pooled_BD, every.fused_clean.pooled_BD, rtol=0, atol=1e-12)
    assert not some.fused_clean.text_BLD[:, 1:].any()
