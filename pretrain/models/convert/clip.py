"""CLIP (arXiv:2103.00020) as `transformers.CLIPModel` and open_clip keep it."""

from collections.abc import Mapping
from typing import Any

from timm.layers import QuickGELU
from torch import Tensor

from pretrain.checkpoint import Checkpoint
from pretrain.models.convert.rules import Rule, Table, modules
from pretrain.models.convert.targets import Target, compare_embeddings, refuse, vit_fields, vit_reasons
from pretrain.models.vision import ImageEncoder
from shards.errors import UserError

_VISION, _BLOCK = "model.vision.backbone.", "model.vision.backbone.blocks.{n}."
_LAYER, _TEXT_LAYER = "vision_model.encoder.layers.{n}.", "model.text.bert.encoder.layers.{n}."
_QKV = "qkv"

CLIP = Table(
    (
        Rule(("logit_scale",), ("objectives.itc.log_temperature",), "negate"),
        Rule(("text_model.{rest}",), ("model.text.bert.{rest}",)),
        Rule(("text_projection.weight",), ("model.text_projection.weight",)),
        Rule(("visual_projection.weight",), ("model.image_projection.weight",)),
        Rule(("vision_model.embeddings.class_embedding",), (f"{_VISION}cls_token",)),
        Rule(("vision_model.embeddings.position_embedding.weight",), (f"{_VISION}pos_embed",)),
        Rule(("vision_model.embeddings.patch_embedding.weight",), (f"{_VISION}patch_embed.proj.weight",)),
        *modules("vision_model.", _VISION, {"pre_layrnorm": "norm_pre", "post_layernorm": "norm"}),
        *modules(_LAYER, _BLOCK, {"layer_norm1": "norm1", "layer_norm2": "norm2", "self_attn.out_proj": "attn.proj"}),
        *modules(_LAYER, _BLOCK, {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}),
        Rule(
            tuple(f"{_LAYER}self_attn.{part}_proj.{{kind}}" for part in _QKV),
            (f"{_BLOCK}attn.qkv.{{kind}}",),
            "stack",
        ),
    ),
    ignored=("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"),
)
"""`transformers.CLIPModel`."""

_READ = "transformer.resblocks.{n}."


def open_clip_image(before: str = "") -> tuple[Rule, ...]:
    """The image tower up to its last norm, in OpenAI's names behind `before`."""
    seen = f"{before}visual."
    layer = f"{seen}transformer.resblocks.{{n}}."
    return (
        Rule((f"{seen}class_embedding",), (f"{_VISION}cls_token",)),
        Rule((f"{seen}positional_embedding",), (f"{_VISION}pos_embed",)),
        Rule((f"{seen}conv1.weight",), (f"{_VISION}patch_embed.proj.weight",)),
        *modules(seen, _VISION, {"ln_pre": "norm_pre", "ln_post": "norm"}),
        *modules(layer, _BLOCK, {"ln_1": "norm1", "ln_2": "norm2", "attn.out_proj": "attn.proj"}),
        *modules(layer, _BLOCK, {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}),
        Rule((f"{layer}attn.in_proj_{{kind}}",), (f"{_BLOCK}attn.qkv.{{kind}}",)),
    )


OPEN_CLIP = Table(
    (
        Rule(("logit_scale",), ("objectives.itc.log_temperature",), "negate"),
        Rule(("token_embedding.weight",), ("model.text.bert.embeddings.token_embedding.weight",)),
        Rule(("positional_embedding",), ("model.text.bert.embeddings.position_embedding.weight",)),
        Rule(("ln_final.{kind}",), ("model.text.bert.final_layer_norm.{kind}",)),
        Rule(("text_projection",), ("model.text_projection.weight",), "transpose"),
        Rule(("visual.proj",), ("model.image_projection.weight",), "transpose"),
        *open_clip_image(),
        *modules(_READ, _TEXT_LAYER, {"ln_1": "layer_norm1", "ln_2": "layer_norm2"}),
        *modules(_READ, _TEXT_LAYER, {"attn.out_proj": "self_attn.out_proj"}),
        *modules(_READ, _TEXT_LAYER, {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}),
        Rule(
            (f"{_READ}attn.in_proj_{{kind}}",),
            tuple(f"{_TEXT_LAYER}self_attn.{part}_proj.{{kind}}" for part in _QKV),
            "split",
        ),
    ),
)
"""open_clip's `CLIP` with its own transformers on both sides."""

BACKBONES = {"quick_gelu": "vit_base_patch16_clip_quickgelu_224", "gelu": "vit_base_patch16_clip_224"}
"""timm's vision transformer of CLIP by activation; its shape comes from the options."""

EPS = 1e-5


def clip_settings(published: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Our configuration for a config.json of `transformers.CLIPModel`.

    Raises:
        UserError: an activation or norm that our towers do not have.
    """
    from transformers import CLIPConfig

    config = CLIPConfig(**published)
    text, vision = config.text_config, config.vision_config
    for side, part in (("text_config", text), ("vision_config", vision)):
        if part.hidden_act not in BACKBONES or (side == "vision_config" and part.layer_norm_eps != EPS):
            raise UserError(
                f"`from` has `{side}.hidden_act` (={part.hidden_act}) and `layer_norm_eps` (={part.layer_norm_eps}); "
                f"known are {' and '.join(BACKBONES)}, and {EPS} for images"
            )
    shape = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    more = ("max_position_embeddings", "hidden_act", "layer_norm_eps")
    options = {name: getattr(text, name) for name in (*shape, *more)}
    model = {
        "image_size": vision.image_size,
        "vision": {
            "name": BACKBONES[vision.hidden_act],
            "options": {
                "patch_size": vision.patch_size,
                "embed_dim": vision.hidden_size,
                "depth": vision.num_hidden_layers,
                "num_heads": vision.num_attention_heads,
                "mlp_ratio": vision.intermediate_size / vision.hidden_size,
            },
        },
        "text": {"kind": "clip", "pooling": "last", "options": options},
        "fusion": {"trunk": "none"},
        "embedding_dim": config.projection_dim,
        "projection_bias": False,
    }
    return {"model": model, "objectives": {"itc": {}}, "data": {"max_tokens": text.max_position_embeddings}}


def open_clip_settings(published: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Our configuration for an open_clip_config.json.

    Raises:
        UserError: towers that are not open_clip's own plain ones.
    """
    config = published.get("model_cfg", published)
    vision, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
    plain = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
    plain_text = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
    strange = sorted(
        {*(vision.keys() - plain), *(text.keys() - plain_text)} - {"hf_tokenizer_name", "tokenizer_kwargs"}
    )
    if strange or not isinstance(vision.get("layers", 12), int):
        raise UserError(f"`from` has a tower with `{(strange or ['layers'])[0]}`, which no table maps")
    act = "quick_gelu" if config.get("quick_gelu") else "gelu"
    width, words = vision.get("width", 768), text.get("width", 512)
    model = {
        "image_size": vision.get("image_size", 224),
        "vision": {
            "name": BACKBONES[act],
            "options": {
                "patch_size": vision.get("patch_size", 16),
                "embed_dim": width,
                "depth": vision.get("layers", 12),
                "num_heads": width // vision.get("head_width", 64),
                "mlp_ratio": vision.get("mlp_ratio", 4.0),
            },
        },
        "text": {
            "kind": "clip",
            "pooling": "last",
            "options": {
                "vocab_size": text.get("vocab_size", 49408),
                "hidden_size": words,
                "intermediate_size": int(words * text.get("mlp_ratio", 4.0)),
                "num_hidden_layers": text.get("layers", 12),
                "num_attention_heads": text.get("heads", 8),
                "max_position_embeddings": text.get("context_length", 77),
                "hidden_act": act,
            },
        },
        "fusion": {"trunk": "none"},
        "embedding_dim": config["embed_dim"],
        "projection_bias": False,
    }
    return {"model": model, "objectives": {"itc": {}}, "data": {"max_tokens": text.get("context_length", 77)}}


LEGACY_END = 2  # the class takes the largest id for the end of a text where `eos_token_id` is this


def check_clip(checkpoint: Checkpoint, kind: str) -> ImageEncoder:
    """The image tower of what is a CLIP.

    Raises:
        UserError: a composition that CLIP does not have; `kind` is its class.
    """
    model, vision, tokenizer = checkpoint.config.model, checkpoint.task.model.vision, checkpoint.tokenizer
    said = f"`model.text` (={model.text.kind}, {model.text.pooling}) is not clip with the last token"
    ends = f"texts end with id {LEGACY_END}, which it takes for an old vocabulary"
    reasons = {
        said: model.text.kind != "clip" or model.text.pooling != "last" or bool(model.text.width),
        "`model.projection_bias` (=true) is not false, or there is no shared space": model.projection_bias
        or model.embedding_dim is None
        or not model.image_projection,
        **vit_reasons(vision, model.vision),
        ends: tokenizer.last_id == LEGACY_END,
    }
    refuse(checkpoint, kind, reasons)
    assert isinstance(vision, ImageEncoder)
    return vision


def clip_target(checkpoint: Checkpoint) -> Target:
    """The `CLIPModel` of a dual encoder.

    Raises:
        UserError: a composition that `CLIPModel` does not have.
    """
    from transformers import CLIPConfig, CLIPModel

    model, vision, tokenizer = checkpoint.config.model, check_clip(checkpoint, "CLIPModel"), checkpoint.tokenizer
    seen = vit_fields(vision, model.image_size) | {"hidden_act": "quick_gelu" if is_quick(vision) else "gelu"}
    text: dict[str, Any] = checkpoint.task.model.text.bert.config.to_dict()
    special = {"bos_token_id": tokenizer.first_id, "eos_token_id": tokenizer.last_id, "pad_token_id": tokenizer.pad_id}
    config = CLIPConfig(text_config=text | special, vision_config=seen, projection_dim=model.embedding_dim)
    return Target(CLIPModel(config), CLIP, compare_embeddings, "CLIPProcessor", segments=False)


def is_quick(vision: ImageEncoder) -> bool:
    """Whether its activation is OpenAI's (`QuickGELU`)."""
    return isinstance(vision.backbone.blocks[0].mlp.act, QuickGELU)
