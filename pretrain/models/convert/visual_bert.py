"""VisualBERT (arXiv:1908.03557) as `transformers` keeps it, with one LayerNorm for words and regions."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pretrain.checkpoint import Checkpoint
from pretrain.models.convert.bert import (
    TIED,
    WORDS,
    embedding_options,
    layer,
    own_words,
    trunk_options,
    word_head,
    word_ties,
)
from pretrain.models.convert.probe import Probe
from pretrain.models.convert.rules import Rule, Table, modules
from pretrain.models.convert.targets import Target, objective, refuse, text_fields, trunk_fields
from pretrain.objectives.mlm import MLM
from pretrain.objectives.pollution import Pollution

_INSIDE, HEAD = "visual_bert.embeddings.", "cls.predictions"

VISUAL_BERT = Table(
    (
        *(
            Rule((f"{_INSIDE}{kind}_embeddings.weight",), (f"{WORDS}{kind}_embeddings.weight",))
            for kind in ("word", "position", "token_type")
        ),
        Rule((f"{_INSIDE}LayerNorm.{{kind}}",), (f"{WORDS}LayerNorm.{{kind}}", "model.vision.norm.{kind}"), "share"),
        Rule(
            (f"{_INSIDE}visual_token_type_embeddings.weight", f"{_INSIDE}visual_position_embeddings.weight"),
            ("model.vision.type_vector",),
            "type",
        ),
        *modules(_INSIDE, "model.vision.", {"visual_projection": "feature"}),
        *layer("visual_bert.encoder.layer.{n}", "model.fusion.blocks.{n}"),
        *modules("visual_bert.", "model.fusion.", {"pooler.dense": "pooler.text"}),
        *word_head(HEAD),
        *modules("cls.", "objectives.pollution.", {"seq_relationship": "head"}),
    ),
    ignored=TIED,
    tied=word_ties(HEAD, _INSIDE),
)


def visual_bert_settings(published: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Our configuration for a config.json of VisualBERT."""
    from transformers import VisualBertConfig

    config = VisualBertConfig(**published)
    width, drop = config.hidden_size, config.hidden_dropout_prob
    region = {
        "features": config.visual_embedding_dim,
        "width": width,
        "type_vector": True,
        "norm": "text",
        "dropout": drop,
    }
    model = {
        "vision": {"region": region | {"eps": config.layer_norm_eps, "dropout": drop}},
        "text": {"options": embedding_options(config, type_vocab_size=config.type_vocab_size)},
        "fusion": {"trunk": "joint", "pooler": "tanh", **trunk_options(config)},
        "embedding_dim": None,
    }
    heads: dict[str, Any] = {"mlm": {"tied": not own_words(tensors, HEAD, _INSIDE)}}
    data = {"regions": {}, "max_tokens": config.max_position_embeddings}
    if "cls.seq_relationship.weight" in tensors:  # is the second caption of this image too?
        heads, data = heads | {"pollution": {"kind": "second"}}, data | {"second": "caption"}
    return {"model": model, "objectives": heads, "data": data}


def visual_bert_target(checkpoint: Checkpoint) -> Target:
    """The `VisualBertForPreTraining` of one stream over words and regions.

    Raises:
        UserError: a composition that the class does not have.
    """
    from transformers import VisualBertConfig, VisualBertForPreTraining

    model = checkpoint.config.model
    fusion, bert, region = model.fusion, checkpoint.task.model.text.bert, model.vision.region
    assert region is not None
    mlm = objective(checkpoint.task, "mlm")
    plain = region.box is None and region.layers == 1 and region.norm == "text" and region.type_vector
    reasons = {
        "`model.vision.region` is not one layer, a type vector and the LayerNorm of words without boxes": not plain
        or any((region.relu, region.norm_parts, region.classes, region.whole_image, model.vision.blocks)),
        f"`model.text.kind` (={model.text.kind}) is not bert, or has layers or a width": model.text.kind != "bert"
        or bool(bert.config.num_hidden_layers or model.text.width),
        f"`model.fusion.norm` (={fusion.norm}) is not post": fusion.norm != "post",
        f"`model.fusion.pooler` (={fusion.pooler}) is not tanh": fusion.pooler != "tanh",
        "`objectives.mlm` is not there, or its matrix is not tied": not isinstance(mlm, MLM) or not mlm.tied,
    }
    refuse(checkpoint, "VisualBertForPreTraining", reasons)
    fields = text_fields(bert) | trunk_fields(fusion, bert.config.hidden_size)
    theirs = VisualBertForPreTraining(VisualBertConfig(**fields, visual_embedding_dim=region.features))
    return Target(theirs, VISUAL_BERT, _compare, None, segments=True)


def _compare(theirs: Any, probe: Probe) -> list[tuple[Tensor, Tensor]]:
    seen = {"visual_embeds": probe.image.features_BKF, "visual_attention_mask": probe.image.mask_BK}
    expected = theirs(**probe.words, **seen)
    pairs = [(probe.word_logits, probe.said(expected.prediction_logits))]
    head = objective(probe.task, "pollution")
    if isinstance(head, Pollution):
        pairs.append((head.head(probe.fused.pooled_BD), expected.seq_relationship_logits))
    return pairs
