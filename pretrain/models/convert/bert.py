"""The parts that systems built on BERT's code share."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pretrain.models.convert.rules import Rule, modules

QKV = ("query", "key", "value")
WORDS = "model.text.bert.embeddings."
TIED = ("{rest}embeddings.position_ids", "{rest}predictions.decoder.{kind}", "{rest}_score.decoder.{kind}")
"""Counters, and the words' output matrix where it is the input's, which `word_ties` has checked."""


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
    """BERT's head that predicts words; its bias has had two names. The output matrix may be the words' own."""
    names = {"transform.dense": "transform.0", "transform.LayerNorm": "transform.2"}
    return (
        *modules(f"{theirs}.", "objectives.mlm.", names),
        Rule((f"{theirs}.decoder.weight",), ("objectives.mlm.decoder.weight",)),
        *(Rule((f"{theirs}.{bias}",), ("objectives.mlm.bias",)) for bias in ("bias", "decoder.bias")),
    )


def own_words(tensors: Mapping[str, Tensor], head: str, embeddings: str) -> bool:
    """Whether the head that predicts words has a matrix other than the words' embedding."""
    matrix, words = (tensors.get(name) for name in word_ties(head, embeddings)[0])
    return matrix is not None and words is not None and not torch.equal(matrix, words)


def word_ties(head: str, embeddings: str) -> tuple[tuple[str, str], ...]:
    """For `Table.tied`."""
    return ((f"{head}.decoder.weight", f"{embeddings}word_embeddings.weight"),)


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
