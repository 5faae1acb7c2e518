"""The parts that systems built on BERT's code share."""

from collections.abc import Mapping
from typing import Any

from pretrain.models.convert.rules import Rule, modules

QKV = ("query", "key", "value")
WORDS = "model.text.bert.embeddings."
TIED = ("{rest}embeddings.position_ids", "{rest}predictions.decoder.{kind}", "{rest}_score.decoder.{kind}")
"""Counters, and the words' output matrix, which is the input's."""


def attention(theirs: str, ours: str, norm: str) -> tuple[Rule, ...]:
    """An attention at `theirs`, its projections ours at `ours`, its LayerNorm at `norm`."""
    parts = {f"self.{part}": part for part in QKV}
    return (
        *modules(f"{theirs}.", f"{ours}.", parts | {"output.dense": "out"}),
        *modules(f"{theirs}.output.", "", {"LayerNorm": norm}),
    )


def layer(theirs: str, ours: str, last_norm: int = 1) -> tuple[Rule, ...]:
    """A post-norm layer; `last_norm` is the number of the norm behind its feed-forward."""
    feed = {"intermediate.dense": "feed_forward.0", "output.dense": "feed_forward.3"}
    return (
        *attention(f"{theirs}.attention", f"{ours}.self_attention", f"{ours}.norms.0"),
        *modules(f"{theirs}.", f"{ours}.", feed | {"output.LayerNorm": f"norms.{last_norm}"}),
    )


def word_head(theirs: str) -> tuple[Rule, ...]:
    """BERT's head that predicts words; its bias has had two names."""
    names = {"transform.dense": "transform.0", "transform.LayerNorm": "transform.2"}
    return (
        *modules(f"{theirs}.", "objectives.mlm.", names),
        *(Rule((f"{theirs}.{bias}",), ("objectives.mlm.bias",)) for bias in ("bias", "decoder.bias")),
    )


def embedding_options(config: Any, **changes: object) -> dict[str, object]:
    """`model.text.options` for a configuration of transformers whose text is only embedded before the trunk."""
    names = ("vocab_size", "hidden_size", "num_attention_heads", "max_position_embeddings", "hidden_dropout_prob")
    found = {name: getattr(config, name) for name in (*names, "layer_norm_eps")}
    return found | {"num_hidden_layers": 0} | changes


def trunk_options(config: Any) -> Mapping[str, object]:
    """`model.fusion` for the layers of a configuration of transformers."""
    return {
        "depth": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "hidden": config.intermediate_size,
        "activation": config.hidden_act,
        "eps": config.layer_norm_eps,
        "dropout": config.hidden_dropout_prob,
    }
