"""Views: what shares a forward gives what it gives alone, and tensors join and part along the batch."""

from collections import Counter

import pytest
import torch

from pretrain.models.build import DuoModel
from pretrain.models.interface import Encoded, Memory
from pretrain.objectives.views import FUSED, Views, prefix
from tests.pretrain.tiny import VOCABULARY, random_batch, tiny_config


@pytest.fixture
def model() -> DuoModel:
    torch.manual_seed(0)
    return DuoModel(tiny_config().model, VOCABULARY).double().eval()


@pytest.fixture
def calls(model, monkeypatch) -> Counter:
    counts: Counter[str] = Counter()

    def counted(name, real):
        def call(*args, **kwargs):
            counts[name] += 1
            return real(*args, **kwargs)

        return call

    for name in ("encode_image", "encode_text", "remember", "fuse"):
        monkeypatch.setattr(model, name, counted(name, getattr(model, name)))
    return counts


@torch.no_grad()
def test_what_is_announced_shares_forwards_and_gives_what_it_gives_alone(model, calls):
    batch = random_batch(5)
    names = ("fused_clean", "fused_masked_text")
    views = Views(model, batch, names)
    together = [getattr(views, name) for name in names]
    assert calls == {"encode_image": 1, "encode_text": 1, "remember": 1, "fuse": 1}
    for name, found in zip(names, together, strict=True):
        alone = getattr(Views(model, batch, ()), name)
        torch.testing.assert_close(found.text_BLD, alone.text_BLD, rtol=0, atol=1e-12)
        torch.testing.assert_close(found.pooled_BD, alone.pooled_BD, rtol=0, atol=1e-12)
    assert not torch.allclose(together[0].text_BLD, together[1].text_BLD)


@torch.no_grad()
def test_what_is_not_announced_still_runs_once(model, calls):
    views = Views(model, random_batch(3), ())
    assert views.fused_clean is views.fused_clean
    assert views.masked_text is views.masked_text
    assert calls == {"encode_image": 1, "encode_text": 2, "remember": 1, "fuse": 1}


@torch.no_grad()
def test_causal_views_do_not_look_ahead(model):
    batch = random_batch(4)
    ids_BL = batch.token_ids_BL.clone()
    ids_BL[:, 3:] = 7
    changed = type(batch)(**{**vars(batch), "token_ids_BL": ids_BL})
    one, other = (Views(model, b, ["fused_causal"]).fused_causal.text_BLD for b in (batch, changed))
    torch.testing.assert_close(one[:, :3], other[:, :3], rtol=0, atol=1e-12)
    assert not torch.allclose(one[:, 3:], other[:, 3:])


def test_a_prefix_is_a_share_from_the_front_and_never_all():
    batch = random_batch(400)
    given = prefix(batch)
    lengths, shares = batch.token_mask_BL.sum(1), given.sum(1)
    assert (given.long().diff(dim=1) <= 0).all()
    assert (shares < lengths).all()
    assert (shares == 0).any()
    assert (shares == lengths - 1).any()


def test_every_fused_view_is_a_property():
    assert all(isinstance(getattr(Views, name), property) for name in FUSED)


def test_rows_join_with_padding_and_part_again():
    one = Encoded(torch.ones(2, 3, 4), torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 5))
    two = Encoded(torch.ones(2, 6, 4), torch.ones(2, 6, dtype=torch.bool), torch.ones(2, 5))
    joined = Encoded.concatenate([one, two])
    assert joined.tokens_BTD.shape == (4, 6, 4)
    assert joined.mask_BT.sum(1).tolist() == [3, 3, 6, 6]
    assert joined.prefix_BT is None
    first, second = joined.split(2)
    assert torch.equal(first.padded(6).tokens_BTD, one.padded(6).tokens_BTD)
    assert torch.equal(second.tokens_BTD, two.tokens_BTD)
    with pytest.raises(AssertionError, match="differ in which tensors"):
        Encoded.concatenate([one, Encoded(two.tokens_BTD, two.mask_BT)])


def test_memories_of_different_lengths_join():
    layers = [[(torch.ones(1, 2, n, 4), torch.ones(1, 2, n, 4))] * 3 for n in (5, 7)]
    joined = Memory.concatenate([Memory(torch.ones(1, kv[0][0].shape[2]) > 0, None, kv) for kv in layers])
    assert joined.mask_BN.sum(1).tolist() == [5, 7]
    assert [(k.shape, v.shape) for k, v in joined.layers] == [((2, 2, 7, 4), (2, 2, 7, 4))] * 3
    assert [len(layer) for layer in joined.rows(slice(0, 1)).layers] == [2, 2, 2]
