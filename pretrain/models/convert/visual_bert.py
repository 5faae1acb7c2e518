"""VisualBERT (arXiv:1908.03557) as `transformers` keeps it; its one LayerNorm for words and regions is ours twice."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pretrain.models.convert.bert import (
    TIED,
    WORDS,
    embedding_options,
    layer,
    trunk_options,
    word_head,
    word_ties,
)
from pretrain.models.convert.rules import Rule, Table, modules

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
    ),
    ignored=TIED,
    tied=word_ties(HEAD, _INSIDE),
)


def visual_bert_settings(published: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Our configuration for a config.json of VisualBERT."""
    from transformers import VisualBertConfig

    config = VisualBertConfig(**published)
    width, drop = config.hidden_size, config.hidden_dropout_prob
    region = {"features": config.visual_embedding_dim, "width": width, "type_vector": True, "dropout": drop}
    model = {
        "vision": {"region": region | {"eps": config.layer_norm_eps}},
        "text": {"options": embedding_options(config, type_vocab_size=config.type_vocab_size)},
        "fusion": {"trunk": "joint", "pooler": "tanh", **trunk_options(config)},
        "embedding_dim": None,
    }
    longest = config.max_position_embeddings
    return {"model": model, "objectives": {"mlm": {}}, "data": {"regions": {}, "max_tokens": longest}}
