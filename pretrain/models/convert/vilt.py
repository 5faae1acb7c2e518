"""ViLT (arXiv:2102.03334) as `transformers` keeps it, with its head for words or for retrieval."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pretrain.checkpoint import Checkpoint
from pretrain.models.convert.bert import (
    QKV,
    TIED,
    WORDS,
    embedding_options,
    own_words,
    trunk_options,
    word_head,
    word_ties,
)
from pretrain.models.convert.probe import Probe
from pretrain.models.convert.rules import Rule, Table, modules
from pretrain.models.convert.targets import Target, objective, refuse, text_fields, trunk_fields
from pretrain.models.patches import PatchEmbedder
from pretrain.objectives.itm import ITM
from pretrain.objectives.mlm import MLM

_BLOCK, _LAYER, _INSIDE = "model.fusion.blocks.{n}.", "vilt.encoder.layer.{n}.", "vilt.embeddings."
_WORDS, HEAD = f"{_INSIDE}text_embeddings.", "mlm_score"

VILT = Table(
    (
        Rule((f"{_INSIDE}text_embeddings.{{rest}}",), (f"{WORDS}{{rest}}",)),
        Rule((f"{_INSIDE}token_type_embeddings.weight",), ("model.fusion.types.weight",)),
        Rule(
            (f"{_INSIDE}cls_token", f"{_INSIDE}position_embeddings"),
            ("model.vision.class_token", "model.vision.positions"),
            "positions",
        ),
        *modules(_INSIDE, "model.vision.", {"patch_embeddings.projection": "projection"}),
        *modules(_LAYER, _BLOCK, {f"attention.attention.{part}": f"self_attention.{part}" for part in QKV}),
        *modules(_LAYER, _BLOCK, {"attention.output.dense": "self_attention.out"}),
        *modules(_LAYER, _BLOCK, {"intermediate.dense": "feed_forward.0", "output.dense": "feed_forward.3"}),
        *modules(_LAYER, _BLOCK, {"layernorm_before": "norms.0", "layernorm_after": "norms.1"}),
        *modules("vilt.", "model.fusion.", {"layernorm": "final_norm", "pooler.dense": "pooler.text"}),
        *word_head(HEAD),
        Rule(("rank_output.{kind}",), ("objectives.itm.head.{kind}",), "match"),
    ),
    ignored=(f"{_INSIDE}text_embeddings.position_ids", *TIED),
    tied=word_ties(HEAD, _WORDS),
)


def vilt_settings(published: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Our configuration for a config.json of ViLT, with the objectives whose heads are among the tensors."""
    from transformers import ViltConfig

    config = ViltConfig(**published)
    model = {
        "image_size": config.image_size,
        "vision": {
            "patch": {"size": config.patch_size, "width": config.hidden_size, "dropout": config.hidden_dropout_prob}
        },
        "text": {"options": embedding_options(config)},
        "fusion": {"trunk": "joint", "norm": "pre", "types": True, "pooler": "tanh", **trunk_options(config)},
        "embedding_dim": None,
    }
    words = {"tied": not own_words(tensors, HEAD, _WORDS)}
    heads = {"mlm": (f"{HEAD}.", words), "itm": ("rank_output.", {"negatives": "swap"})}
    found = {key: value for key, (head, value) in heads.items() if any(name.startswith(head) for name in tensors)}
    return {"model": model, "objectives": found, "data": {"max_tokens": config.max_position_embeddings}}


def vilt_target(checkpoint: Checkpoint) -> Target:
    """`ViltForImageAndTextRetrieval` where there is a head for matching, else `ViltForMaskedLM`.

    Raises:
        UserError: a composition that neither has.
    """
    from transformers import ViltConfig, ViltForImageAndTextRetrieval, ViltForMaskedLM

    model, vision = checkpoint.config.model, checkpoint.task.model.vision
    fusion, bert, heads = model.fusion, checkpoint.task.model.text.bert, checkpoint.task.objectives
    mlm = objective(checkpoint.task, "mlm")
    patches = isinstance(vision, PatchEmbedder) and vision.class_token is not None
    reasons = {
        "`model.vision` is not linear patches behind a class token": not patches,
        f"`model.text.kind` (={model.text.kind}) is not bert, or has layers or a width": model.text.kind != "bert"
        or bool(bert.config.num_hidden_layers or model.text.width),
        f"`model.fusion.norm` (={fusion.norm}) is not pre": fusion.norm != "pre",
        f"`model.fusion.pooler` (={fusion.pooler}) is not tanh": fusion.pooler != "tanh",
        "`model.fusion.types` (=false) is not true": not fusion.types,
        "there is a head neither for matching nor for words": "itm" not in heads and mlm is None,
        "`objectives.mlm.tied` (=false) is not true": "itm" not in heads and isinstance(mlm, MLM) and not mlm.tied,
    }
    refuse(checkpoint, "ViLT", reasons)
    assert isinstance(vision, PatchEmbedder)
    fields = text_fields(bert) | trunk_fields(fusion, bert.config.hidden_size)
    config = ViltConfig(**fields, image_size=model.image_size, patch_size=vision.config.size, max_image_length=-1)
    theirs = ViltForImageAndTextRetrieval(config) if "itm" in heads else ViltForMaskedLM(config)
    return Target(theirs, VILT, _compare, "ViltProcessor", segments=True)


def _compare(theirs: Any, probe: Probe) -> list[tuple[Tensor, Tensor]]:
    expected = theirs(**probe.words, **probe.pixels).logits
    head = objective(probe.task, "itm")
    if isinstance(head, ITM):
        return [(head.score(probe.fused)[:, None], expected)]
    return [(probe.word_logits, probe.said(expected))]
