"""Text towers against the classes of transformers that they are made of, padding and causality included."""

import pytest
import torch
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from pretrain.models.config import TextConfig
from pretrain.models.interface import TextInput
from pretrain.models.text import TextEncoder
from tests.parity.weights import distance, shake

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
ORACLES = {
    "bert": (BertConfig, BertModel, {"max_position_embeddings": 12}),
    "roberta": (RobertaConfig, RobertaModel, {"max_position_embeddings": 14, "pad_token_id": 1}),
}


@torch.no_grad()
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ORACLES)
def test_features_of_every_token(kind, causal):
    config, model, more = ORACLES[kind]
    ours = shake(TextEncoder(TextConfig(kind=kind, options=SHAPE | more), 40))
    theirs = model(config(vocab_size=40, is_decoder=causal, **SHAPE, **more), add_pooling_layer=False).eval()
    theirs.load_state_dict(ours.bert.state_dict())
    assert ours.longest == 12
    ids_BL = torch.randint(5, 40, (3, 12), generator=torch.Generator().manual_seed(0))
    mask_BL = torch.arange(12) < torch.tensor([[12], [5], [9]])
    ids_BL = torch.where(mask_BL, ids_BL, 1)
    found, pooled = ours(TextInput(ids_BL, mask_BL), causal)
    expected = theirs(input_ids=ids_BL, attention_mask=mask_BL.long()).last_hidden_state
    # Measured: 0.
    assert distance(found[mask_BL], expected[mask_BL]) < 1e-5
    assert torch.equal(pooled, found[:, 0])
