"""BLIP (arXiv:2201.12086) as `transformers.BlipForImageTextRetrieval` keeps it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pretrain.checkpoint import Checkpoint
from pretrain.models.convert.bert import TIED, WORDS, attention, embedding_options, layer, trunk_options
from pretrain.models.convert.probe import Probe
from pretrain.models.convert.rules import Rule, Table, modules
from pretrain.models.convert.targets import (
    Target,
    objective,
    refuse,
    text_fields,
    trunk_fields,
    vit_fields,
    vit_reasons,
)
from pretrain.models.vision import ImageEncoder
from pretrain.objectives.itm import ITM
from shards.errors import UserError

_IMAGE, _INSIDE = "model.vision.backbone.", "vision_model.embeddings."
_LAYER, _BLOCK = "vision_model.encoder.layers.{n}.", "model.vision.backbone.blocks.{n}."
_CROSS, _OURS = "text_encoder.encoder.layer.{n}", "model.fusion.blocks.{n}"
_PLACES, _TYPES = f"{WORDS}position_embeddings.weight", f"{WORDS}token_type_embeddings.weight"
_NAMES = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.qkv": "attn.qkv",
    "self_attn.projection": "attn.proj",
}

BLIP = Table(
    (
        Rule((f"{_INSIDE}class_embedding",), (f"{_IMAGE}cls_token",)),
        Rule((f"{_INSIDE}position_embedding",), (f"{_IMAGE}pos_embed",)),
        *modules(_INSIDE, _IMAGE, {"patch_embedding": "patch_embed.proj"}),
        *modules("vision_model.", _IMAGE, {"post_layernorm": "norm"}),
        *modules(_LAYER, _BLOCK, _NAMES | {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}),
        Rule(("text_encoder.embeddings.{rest}",), (f"{WORDS}{{rest}}",)),
        *layer(_CROSS, _OURS, last_norm=2),
        *attention(f"{_CROSS}.crossattention", f"{_OURS}.cross_attention", f"{_OURS}.norms.1"),
        *modules("", "model.", {"vision_proj": "image_projection", "text_proj": "text_projection"}),
        *modules("", "objectives.itm.", {"itm_head": "head"}),
    ),
    ignored=TIED,
    fresh=("objectives.itc.log_temperature", "objectives.itc.queue.{rest}", "momentum.{rest}"),
    zeros=(_TYPES,),  # its texts have no segments
    back=(Rule((_PLACES, _TYPES), ("text_encoder.embeddings.position_embeddings.weight",), "with_type"),),
)

BACKBONES = {
    1e-5: ("vit_base_patch16_clip_224", {"pre_norm": False}),
    1e-6: ("vit_base_patch16_224", {}),
}
"""timm's vision transformers by the epsilon of their norms; their shape comes from the options."""


def blip_settings(published: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Our configuration for a config.json of BLIP.

    Raises:
        UserError: norms or an activation that our image tower does not have.
    """
    from transformers import BlipConfig

    config = BlipConfig(**published)
    text, vision = config.text_config, config.vision_config
    if vision.layer_norm_eps not in BACKBONES or vision.hidden_act != "gelu":
        raise UserError(
            f"`from` has `vision_config.layer_norm_eps` (={vision.layer_norm_eps}) and `hidden_act` "
            f"(={vision.hidden_act}); known are {' and '.join(map(str, BACKBONES))} with gelu"
        )
    name, more = BACKBONES[vision.layer_norm_eps]
    options = {
        "patch_size": vision.patch_size,
        "embed_dim": vision.hidden_size,
        "depth": vision.num_hidden_layers,
        "num_heads": vision.num_attention_heads,
        "mlp_ratio": vision.intermediate_size / vision.hidden_size,
    }
    model = {
        "image_size": vision.image_size,
        "vision": {"name": name, "options": options | more},
        "text": {"options": embedding_options(text)},
        "fusion": {"shared_text": True, **trunk_options(text)},
        "embedding_dim": config.image_text_hidden_size,
    }
    return {"model": model, "objectives": {"itc": {}, "itm": {}}, "data": {"max_tokens": 35}}


def blip_target(checkpoint: Checkpoint) -> Target:
    """The `BlipForImageTextRetrieval` of a trunk that is the text encoder too.

    Raises:
        UserError: a composition that the class does not have.
    """
    from transformers import BlipConfig, BlipForImageTextRetrieval

    model, vision = checkpoint.config.model, checkpoint.task.model.vision
    fusion, bert = model.fusion, checkpoint.task.model.text.bert
    plain = model.text.kind == "bert" and model.text.pooling == "cls" and not model.text.width
    reasons = {
        "`model.fusion.shared_text` (=false) is not true": not fusion.shared_text,
        f"`model.fusion.norm` (={fusion.norm}) is not post": fusion.norm != "post",
        f"`model.fusion.pooler` (={fusion.pooler}) is not first": fusion.pooler != "first",
        f"`model.text` (={model.text.kind}, {model.text.pooling}) is not bert with the first token": not plain,
        "there is no shared space": model.embedding_dim is None,
        **vit_reasons(vision, model.vision),
    }
    refuse(checkpoint, "BlipForImageTextRetrieval", reasons)
    assert isinstance(vision, ImageEncoder)
    text = text_fields(bert) | trunk_fields(fusion, bert.config.hidden_size)
    tokenizer = checkpoint.tokenizer
    ends = {"bos_token_id": tokenizer.first_id, "sep_token_id": tokenizer.last_id, "eos_token_id": tokenizer.last_id}
    text |= ends | {"encoder_hidden_size": vision.width, "pad_token_id": tokenizer.pad_id}
    seen = vit_fields(vision, model.image_size) | {"hidden_act": "gelu"}
    config = BlipConfig(text_config=text, vision_config=seen, image_text_hidden_size=model.embedding_dim)
    theirs = BlipForImageTextRetrieval(config)
    return Target(theirs, BLIP, _compare, "BlipProcessor", segments=False)


def _compare(theirs: Any, probe: Probe) -> list[tuple[Tensor, Tensor]]:
    image, text = probe.encoded
    inputs = probe.words | probe.pixels
    cosine = (image.embedding_BE @ text.embedding_BE.T, theirs(**inputs, use_itm_head=False).itm_score)
    head = objective(probe.task, "itm")
    if not isinstance(head, ITM):
        return [cosine]
    return [cosine, (head.head(probe.fused.pooled_BD), theirs(**inputs, use_itm_head=True).itm_score)]
