"""Packed tokens against boolean indexing: values, gradients, and what padding may not change."""

import pytest
import torch

from pretrain.models.config import TextConfig
from pretrain.models.interface import TextInput
from pretrain.models.packing import Packing, at, put, take
from pretrain.models.text import TextEncoder
from tests.pretrain.test_models import loud

MASKS = {
    "lengths": torch.tensor([[True, True, False, False], [True, True, True, True], [True, False, False, False]]),
    "holes": torch.tensor([[False, True, False, True], [True, False, True, True], [False, False, False, True]]),
    "an empty item": torch.tensor([[False, False], [True, True], [False, True]]),
    "nothing padded": torch.ones(2, 3, dtype=torch.bool),
    "nothing at all": torch.zeros(2, 3, dtype=torch.bool),
}


@pytest.mark.parametrize("name", MASKS)
def test_packing_is_indexing_and_padding_its_reverse(name):
    mask_BT = MASKS[name]
    packing = Packing.of(mask_BT)
    x_BTD = torch.randn(*mask_BT.shape, 5, dtype=torch.float64, requires_grad=True)
    assert torch.equal(packing.pack(x_BTD), x_BTD[mask_BT])
    assert torch.equal(at(x_BTD, mask_BT), x_BTD[mask_BT])
    assert torch.equal(packing.pad(packing.pack(x_BTD)), torch.where(mask_BT[..., None], x_BTD, 0))
    assert torch.equal(packing.choose(mask_BT.long().cumsum(1)), mask_BT.long().cumsum(1)[mask_BT])
    assert (packing.keys_B11T is None) == bool(mask_BT.all())
    assert torch.autograd.gradcheck(packing.pack, (x_BTD,))
    assert torch.autograd.gradcheck(packing.pad, (x_BTD.detach()[mask_BT].requires_grad_(),))


def test_rows_go_to_their_places_and_come_back():
    x, places = torch.randn(4, 3), torch.tensor([6, 0, 3, 2])
    spread = put(x, places, 7)
    assert torch.equal(take(spread, places), x)
    assert spread[[1, 4, 5]].abs().sum() == 0


@pytest.mark.parametrize("kind", ["bert", "roberta", "clip"])
def test_a_text_is_encoded_as_if_it_were_alone(kind):
    """Values and gradients of texts that share a batch, and of each by itself, where nothing is padded."""
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    more = {"max_position_embeddings": 14} | ({"attention_dropout": 0.0} if kind == "clip" else {})
    encoder = loud(TextEncoder(TextConfig(kind=kind, pooling="mean", options=shape | more), 40))
    ids_BL = torch.randint(5, 40, (3, 9))
    lengths = [4, 9, 1]
    together, pooled = encoder(TextInput(ids_BL, torch.arange(9) < torch.tensor(lengths)[:, None]))
    pooled.square().sum().backward()
    gradients = [p.grad.clone() for p in encoder.parameters()]
    encoder.zero_grad()
    for row, length in enumerate(lengths):
        alone, pooled = encoder(TextInput(ids_BL[row : row + 1, :length], torch.ones(1, length, dtype=torch.bool)))
        # Measured: at most 4e-15 of values around 1, in float64.
        torch.testing.assert_close(together[row, :length], alone[0], rtol=0, atol=1e-12)
        assert not together[row, length:].any()
        pooled.square().sum().backward()
    for found, parameter in zip(gradients, encoder.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=1e-9, atol=1e-9)
