"""VisualBERT against `transformers.VisualBertForPreTraining`: both heads, loss and gradients."""

import torch
from torch import nn
from transformers import VisualBertConfig, VisualBertForPreTraining

from pretrain.config import PretrainConfig
from pretrain.data.masking import IGNORE
from pretrain.models.convert.visual_bert import VISUAL_BERT
from pretrain.objectives.views import Views
from pretrain.settings import parse_config
from pretrain.task import Task
from tests.parity.weights import batch_of, copy, distance, shake, worst_gradient

VOCABULARY, EPS = 40, 1e-12


def visual_bert() -> VisualBertForPreTraining:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    calm = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = VisualBertConfig(
        vocab_size=VOCABULARY, visual_embedding_dim=10, max_position_embeddings=12, **shape, **calm
    )
    return shake(VisualBertForPreTraining(config))


def task() -> Task:
    options = {"hidden_size": 32, "num_hidden_layers": 0, "max_position_embeddings": 12, "hidden_dropout_prob": 0.0}
    model = {
        "vision": {"region": {"features": 10, "width": 32, "type_vector": True, "norm": "text"}},
        "text": {"options": options | {"num_attention_heads": 4}},
        "fusion": {"trunk": "joint", "depth": 2, "heads": 4, "hidden": 64, "eps": EPS, "pooler": "tanh"},
        "embedding_dim": None,
    }
    values = {"model": model, "objectives": {"mlm": {}}, "data": {"regions": {}}}
    config = parse_config(PretrainConfig, values)
    return Task(config.model, config.objectives, VOCABULARY).eval()


def test_both_heads_loss_and_gradients():
    theirs, ours = visual_bert(), task()
    sources = copy(ours, VISUAL_BERT, theirs)
    generator = torch.Generator().manual_seed(1)
    ids_BL = torch.randint(5, VOCABULARY, (3, 9), generator=generator)
    mask_BL = torch.arange(9) < torch.tensor([[9], [4], [7]])
    segments_BL = torch.tensor([0] * 5 + [1] * 4).expand(3, 9) * mask_BL
    labels_BL = torch.where(mask_BL & (torch.rand(3, 9, generator=generator) < 0.4), ids_BL, IGNORE)
    features_BKF = torch.randn(3, 6, 10, generator=generator)
    there_BK = torch.arange(6) < torch.tensor([[6], [2], [4]])
    batch = batch_of(
        None,
        ids_BL,
        mask_BL,
        masked_labels_BL=labels_BL,
        segments_BL=segments_BL,
        region_features_BKF=features_BKF,
        region_boxes_BK4=torch.zeros(3, 6, 4),
        region_mask_BK=there_BK,
    )
    expected = theirs(
        input_ids=ids_BL,
        attention_mask=mask_BL.long(),
        token_type_ids=segments_BL,
        visual_embeds=features_BKF,
        visual_attention_mask=there_BK.long(),
    )
    pooled_BD = Views(ours.model, batch, ()).fused_masked_text.pooled_BD
    # Measured: 1.1e-7, 1.3e-7 and, of gradients, 7e-7.
    assert distance(theirs.cls.seq_relationship(pooled_BD), expected.seq_relationship_logits) < 1e-5
    expected_loss = nn.functional.cross_entropy(expected.prediction_logits[:, :9].flatten(0, 1), labels_BL.flatten())
    loss = ours(batch)["loss"]
    expected_loss.backward()
    loss.backward()
    assert distance(loss, expected_loss) < 1e-5
    assert worst_gradient(ours, {name: source for name, source in sources.items() if "pooler" not in name}) < 5e-5
    norm = ours.model.vision.norm  # one for both modalities, as in theirs
    assert norm is ours.model.text.bert.embeddings.LayerNorm
    assert distance(norm.weight.grad, theirs.visual_bert.embeddings.LayerNorm.weight.grad) < 5e-5
    type_grad = theirs.visual_bert.embeddings.visual_token_type_embeddings.weight.grad[1]
    assert distance(ours.model.vision.type_vector.grad, type_grad) < 5e-5
