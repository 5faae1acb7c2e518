"""LXMERT against `transformers.LxmertForPreTraining`: both streams, pooled output, masked words and gradients."""

import torch
from torch import nn
from transformers import LxmertConfig, LxmertForPreTraining

from pretrain.config import PretrainConfig
from pretrain.data.masking import IGNORE
from pretrain.models.convert.lxmert import lxmert_table
from pretrain.objectives.views import Views
from pretrain.settings import parse_config
from pretrain.task import Task
from tests.parity.weights import batch_of, copy, distance, shake, worst_gradient

VOCABULARY, EPS = 40, 1e-12
BERT = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 12}
CALM = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def lxmert() -> LxmertForPreTraining:
    layers = {"l_layers": 3, "r_layers": 2, "x_layers": 2}
    model = LxmertForPreTraining(LxmertConfig(vocab_size=VOCABULARY, visual_feat_dim=10, **layers, **BERT, **CALM))
    for table in (model.lxmert.embeddings.position_embeddings, model.lxmert.embeddings.token_type_embeddings):
        table.padding_idx = None  # that of words, given to these too: it only keeps row 0 from learning
    return shake(model)


def config() -> PretrainConfig:
    region = {"features": 10, "width": 32, "box": "box4", "combine": "mean", "norm_parts": True, "norm": False}
    co = {"placement": ["image*2", "cross*2"], "order": ["cross", "self", "feed"], "shared": True}
    model = {
        "vision": {"region": region},
        "text": {"options": BERT | CALM | {"num_hidden_layers": 3}},
        "fusion": {"trunk": "co_attention", "heads": 4, "hidden": 64, "eps": EPS, "pooler": "tanh", "co_attention": co},
        "embedding_dim": None,
    }
    return parse_config(PretrainConfig, {"model": model, "objectives": {"mlm": {}}, "data": {"regions": {}}})


def test_both_streams_words_and_gradients():
    theirs, settings = lxmert(), config()
    ours = Task(settings.model, settings.objectives, VOCABULARY).eval()
    sources = copy(ours, lxmert_table(settings.model), theirs)
    generator = torch.Generator().manual_seed(1)
    ids_BL = torch.randint(5, VOCABULARY, (3, 9), generator=generator)
    mask_BL = torch.arange(9) < torch.tensor([[9], [4], [7]])
    labels_BL = torch.where(mask_BL & (torch.rand(3, 9, generator=generator) < 0.4), ids_BL, IGNORE)
    features_BKF, boxes_BK4 = torch.randn(3, 6, 10, generator=generator), torch.rand(3, 6, 4, generator=generator)
    there_BK = torch.arange(6) < torch.tensor([[6], [2], [4]])
    batch = batch_of(
        None,
        ids_BL,
        mask_BL,
        masked_labels_BL=labels_BL,
        region_features_BKF=features_BKF,
        region_boxes_BK4=boxes_BK4,
        region_mask_BK=there_BK,
    )
    inputs = {
        "input_ids": ids_BL,
        "attention_mask": mask_BL.long(),
        "visual_feats": features_BKF,
        "visual_pos": boxes_BK4,
        "visual_attention_mask": there_BK.long(),
    }
    expected = theirs.lxmert(**inputs)
    fused = Views(ours.model, batch, ()).fused_masked_text
    # Measured: 2e-7, 2e-7, 2e-7, 0 and, of gradients, 1.1e-6.
    assert distance(fused.text_BLD[mask_BL], expected.language_output[mask_BL]) < 1e-5
    assert distance(fused.image_BND[there_BK], expected.vision_output[there_BK]) < 1e-5
    assert distance(fused.pooled_BD, expected.pooled_output) < 1e-5
    logits_BLV = theirs(**inputs).prediction_logits
    expected_loss = nn.functional.cross_entropy(logits_BLV.flatten(0, 1), labels_BL.flatten())
    loss = ours(batch)["loss"]
    expected_loss.backward()
    loss.backward()
    assert distance(loss, expected_loss) < 1e-5
    unread = ("pooler", "blocks.3.image")  # the last layer's image side is no part of the words' loss
    assert worst_gradient(ours, {n: s for n, s in sources.items() if not any(part in n for part in unread)}) < 5e-5
