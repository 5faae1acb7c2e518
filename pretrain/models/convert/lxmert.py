"""LXMERT (arXiv:1908.07490) as `transformers.LxmertForPreTraining` keeps it: two streams and the heads for words and
matching. Its heads for objects and answers have no counterpart and must be allowed by name."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pretrain.checkpoint import Checkpoint
from pretrain.models.config import ModelConfig
from pretrain.models.convert.bert import QKV, TIED, attention, layer, own_words, word_head, word_ties
from pretrain.models.convert.probe import Probe
from pretrain.models.convert.rules import Rule, Table, modules
from pretrain.models.convert.targets import Target, objective, refuse, text_fields, trunk_fields
from pretrain.models.text import SHAPE
from pretrain.objectives.itm import ITM
from pretrain.objectives.mlm import MLM

_WORDS, HEAD = "lxmert.embeddings.", "cls.predictions"


def lxmert_table(config: ModelConfig) -> Table:
    """Image layers and bridges are numbered on in ours and each from 0 in theirs."""
    steps = config.fusion.co_attention.steps(config.fusion.depth)
    images = steps.count("image")
    seen = {
        "visn_fc": "feature",
        "visn_layer_norm": "part_norms.0",
        "box_fc": "place",
        "box_layer_norm": "part_norms.1",
    }
    return Table(
        (
            Rule(("lxmert.embeddings.{rest}",), ("model.text.bert.embeddings.{rest}",)),
            Rule(("lxmert.encoder.layer.{rest}",), ("model.text.bert.encoder.layer.{rest}",)),
            *modules("lxmert.encoder.visn_fc.", "model.vision.", seen),
            *modules("lxmert.", "model.fusion.", {"pooler.dense": "pooler.text"}),
            *layer("lxmert.encoder.r_layers.{n}", "model.fusion.blocks.{n}"),
            *(rule for number in range(steps.count("cross")) for rule in _bridge(number, images + number)),
            *word_head(HEAD),
            *modules("cls.", "objectives.itm.", {"seq_relationship": "head"}),
        ),
        ignored=TIED,
        tied=word_ties(HEAD, _WORDS),
    )


def _bridge(theirs: int, ours: int) -> tuple[Rule, ...]:
    """Cross-attention with one set of weights for both sides, then each side's self-attention and feed-forward."""
    block, cross = f"model.fusion.blocks.{ours}.", f"lxmert.encoder.x_layers.{theirs}."
    looks = {f"att.{part}": f"cross_attention.{part}" for part in QKV}
    looks |= {"output.dense": "cross_attention.out", "output.LayerNorm": "norms.0"}
    rules: tuple[Rule, ...] = tuple(
        Rule(
            (f"{cross}visual_attention.{a}.{{kind}}",),
            (f"{block}text.{b}.{{kind}}", f"{block}image.{b}.{{kind}}"),
            "share",
        )
        for a, b in looks.items()
    )
    for side, name in (("text", "lang"), ("image", "visn")):
        feed = {f"{name}_inter.dense": "feed_forward.0", f"{name}_output.dense": "feed_forward.3"}
        rules += attention(f"{cross}{name}_self_att", f"{block}{side}.self_attention", f"{block}{side}.norms.1")
        rules += modules(cross, f"{block}{side}.", feed | {f"{name}_output.LayerNorm": "norms.2"})
    return rules


def lxmert_settings(published: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Our configuration for a config.json of LXMERT."""
    from transformers import LxmertConfig

    config = LxmertConfig(**published)
    own = config.to_dict() | {"num_hidden_layers": config.l_layers, "layer_norm_eps": 1e-12}
    shape = set(SHAPE) - {"pad_token_id", "bos_token_id", "eos_token_id"}
    placement = [f"image*{config.r_layers}", f"cross*{config.x_layers}"]
    region = {"features": config.visual_feat_dim, "width": config.hidden_size, "box": "box4", "combine": "mean"}
    drop = config.hidden_dropout_prob
    model = {
        "vision": {"region": region | {"norm_parts": True, "norm": False, "dropout": drop}},
        "text": {"options": {name: own[name] for name in SHAPE if name in own and name in shape}},
        "fusion": {
            "trunk": "co_attention",
            "heads": config.num_attention_heads,
            "hidden": config.intermediate_size,
            "activation": config.hidden_act,
            "dropout": drop,
            "eps": 1e-12,
            "pooler": "tanh",
            "co_attention": {"placement": placement, "order": ["cross", "self", "feed"], "shared": True},
        },
        "embedding_dim": None,
    }
    words = {"tied": not own_words(tensors, HEAD, _WORDS)}
    heads = {"mlm": (f"{HEAD}.", words), "itm": ("cls.seq_relationship.", {"negatives": "swap"})}
    found = {key: value for key, (head, value) in heads.items() if any(name.startswith(head) for name in tensors)}
    return {"model": model, "objectives": found, "data": {"regions": {}, "max_tokens": 20}}


def lxmert_target(checkpoint: Checkpoint) -> Target:
    """The `LxmertForPreTraining` of two streams, without its heads for objects and answers.

    Raises:
        UserError: a composition that the class does not have.
    """
    from transformers import LxmertConfig, LxmertForPreTraining

    model = checkpoint.config.model
    fusion, bert, region, co = (
        model.fusion,
        checkpoint.task.model.text.bert,
        model.vision.region,
        model.fusion.co_attention,
    )
    steps, mlm = co.steps(fusion.depth), objective(checkpoint.task, "mlm")
    images, bridges = steps.count("image"), steps.count("cross")
    plain = region is not None and region.box == "box4" and region.combine == "mean" and region.norm_parts
    reasons = {
        "`model.vision.region` is not the mean of features and corners, a LayerNorm on each": not plain
        or region is None
        or any((region.layers != 1, region.relu, region.norm, region.type_vector, region.classes, region.whole_image)),
        f"`model.text.kind` (={model.text.kind}) is not bert": model.text.kind != "bert" or bool(model.text.width),
        f"`model.fusion.norm` (={fusion.norm}) is not post": fusion.norm != "post",
        f"`model.fusion.pooler` (={fusion.pooler}) is not tanh": fusion.pooler != "tanh",
        "`model.fusion.co_attention` is not image layers, then bridges of one cross-attention": not co.shared
        or co.order != ("cross", "self", "feed")
        or steps != ["image"] * images + ["cross"] * bridges,
        "`objectives.mlm` is not there, or its matrix is not tied": not isinstance(mlm, MLM) or not mlm.tied,
    }
    refuse(checkpoint, "LxmertForPreTraining", reasons)
    assert region is not None
    fields = text_fields(bert) | trunk_fields(fusion, bert.config.hidden_size)
    layers = {"l_layers": bert.config.num_hidden_layers, "r_layers": images, "x_layers": bridges}
    heads = {"task_obj_predict": False, "task_qa": False}
    own = {name: value for name, value in fields.items() if name not in ("num_hidden_layers", "layer_norm_eps")}
    theirs = LxmertForPreTraining(LxmertConfig(**own, **layers, **heads, visual_feat_dim=region.features))
    return Target(theirs, lxmert_table(model), _compare, None, segments=True)


def _compare(theirs: Any, probe: Probe) -> list[tuple[Tensor, Tensor]]:
    image = probe.image
    seen = {"visual_feats": image.features_BKF, "visual_pos": image.boxes_BK4, "visual_attention_mask": image.mask_BK}
    expected = theirs(**probe.words, **seen)
    pairs = [(probe.word_logits, probe.said(expected.prediction_logits))]
    head = objective(probe.task, "itm")
    if isinstance(head, ITM):
        pairs.append((head.head(probe.fused.pooled_BD), expected.cross_relationship_score))
    return pairs
