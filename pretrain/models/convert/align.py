"""ALIGN (arXiv:2102.05918) as `transformers.AlignModel` keeps it: an EfficientNet and a BERT.

Its convolutions that halve a side pad the lower right alone; timm's pad as TensorFlow does, by the size. Both are the
same where every halved side is even, so images have sizes that are multiples of 32.
"""

from collections.abc import Iterator, Mapping
from math import ceil
from typing import Any

from torch import Tensor

from pretrain.checkpoint import Checkpoint
from pretrain.models.config import ModelConfig
from pretrain.models.convert.rules import Rule, Table, modules
from pretrain.models.convert.targets import Target, compare_embeddings, refuse, text_fields
from pretrain.models.vision import ImageEncoder
from shards.errors import UserError

SIZES = {
    "b0": (1.0, 1.0),
    "b1": (1.0, 1.1),
    "b2": (1.1, 1.2),
    "b3": (1.2, 1.4),
    "b4": (1.4, 1.8),
    "b5": (1.6, 2.2),
    "b6": (1.8, 2.6),
    "b7": (2.0, 3.1),
}
"""Width and depth coefficients (EfficientNet, arXiv:1905.11946)."""

NAME = "tf_efficientnet_{}.ap_in1k"
"""In timm; this tag normalises pixels to [-1, 1], as ALIGN does."""

REPEATS = (1, 2, 2, 3, 3, 4, 1)
HALVINGS = 32

_IMAGE = "model.vision.backbone."
_ALL = {
    "squeeze_excite.reduce": "se.conv_reduce",
    "squeeze_excite.expand": "se.conv_expand",
    "depthwise_conv.depthwise_conv": "conv_dw",
}
_FIRST = {"depthwise_conv.depthwise_norm": "bn1", "projection.project_conv": "conv_pw", "projection.project_bn": "bn2"}
_OTHER = {
    "expansion.expand_conv": "conv_pw",
    "expansion.expand_bn": "bn1",
    "depthwise_conv.depthwise_norm": "bn2",
    "projection.project_conv": "conv_pwl",
    "projection.project_bn": "bn3",
}
"""Of the blocks of the first stage, which expand nothing, and of the others."""


def align_table(config: ModelConfig) -> Table:
    """Blocks are numbered through in theirs and within each stage in ours."""
    size = str(_size(config.vision.name))
    return Table(
        (
            Rule(("text_model.embeddings.{rest}",), ("model.text.bert.embeddings.{rest}",)),
            Rule(("text_model.encoder.{rest}",), ("model.text.bert.encoder.{rest}",)),
            *modules("", "model.", {"text_projection": "text_projection"}),
            Rule(("temperature",), ("objectives.itc.log_temperature",), "log"),
            *_parts("vision_model.embeddings.", _IMAGE, {"convolution": "conv_stem", "batchnorm": "bn1"}),
            *_blocks(SIZES[size][1]),
        ),
        ignored=("text_model.pooler.dense.{kind}", "text_model.embeddings.position_ids"),  # its model reads no pooler
    )


def _blocks(depth: float) -> Iterator[Rule]:
    number = 0
    for stage, repeats in enumerate(REPEATS):
        for place in range(ceil(depth * repeats)):
            theirs, ours = f"vision_model.encoder.blocks.{number}.", f"{_IMAGE}blocks.{stage}.{place}."
            yield from _parts(theirs, ours, _ALL | (_OTHER if stage else _FIRST))
            number += 1


def _parts(theirs: str, ours: str, names: Mapping[str, str]) -> tuple[Rule, ...]:
    """All tensors of modules: those of a BatchNorm have more names than weight and bias."""
    return tuple(Rule((f"{theirs}{a}.{{rest}}",), (f"{ours}{b}.{{rest}}",)) for a, b in names.items())


def align_settings(published: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Our configuration for a config.json of ALIGN, its images in the next smaller multiple of 32 pixels.

    Raises:
        UserError: an image tower that is none of EfficientNet's published sizes.
    """
    from transformers import AlignConfig

    config = AlignConfig(**published)
    text, vision = config.text_config, config.vision_config
    coefficients = (vision.width_coefficient, vision.depth_coefficient)
    size = next((size for size, known in SIZES.items() if known == coefficients), None)
    if size is None or vision.depthwise_padding or vision.pooling_type != "mean":
        raise UserError(
            f"`from` has `vision_config` with coefficients {coefficients}, `depthwise_padding` "
            f"(={list(vision.depthwise_padding)}) and `pooling_type` (={vision.pooling_type}); known are "
            f"{', '.join(map(str, SIZES.values()))} with no padding of its own and the mean"
        )
    shape = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
    more = ("max_position_embeddings", "type_vocab_size", "layer_norm_eps", "pad_token_id", "hidden_dropout_prob")
    options = {name: getattr(text, name) for name in (*shape, *more, "attention_probs_dropout_prob")}
    model = {
        "image_size": vision.image_size // HALVINGS * HALVINGS,
        "vision": {"name": NAME.format(size), "last_conv": False},
        "text": {"options": options},
        "fusion": {"trunk": "none"},
        "embedding_dim": config.projection_dim,
        "image_projection": False,
    }
    itc = {"label_smoothing": 0.1, "limits": [1e-3, 100.0]}
    return {"model": model, "objectives": {"itc": itc}, "data": {"max_tokens": min(64, text.max_position_embeddings)}}


def align_target(checkpoint: Checkpoint) -> Target:
    """The `AlignModel` of a dual encoder.

    Raises:
        UserError: a composition that `AlignModel` does not have.
    """
    from transformers import AlignConfig, AlignModel

    model, vision = checkpoint.config.model, checkpoint.task.model.vision
    size = _size(model.vision.name)
    plain = model.text.kind == "bert" and model.text.pooling == "cls" and not model.text.width
    reasons = {
        f"`model.vision.name` (={model.vision.name}) is not an EfficientNet of TensorFlow's": size is None
        or model.vision.width is not None
        or model.vision.last_conv
        or not isinstance(vision, ImageEncoder),
        f"`model.text` (={model.text.kind}, {model.text.pooling}) is not bert with the first token": not plain,
        "`model.image_projection` (=true) is not false": model.image_projection,
        f"`model.image_size` (={model.image_size}) is no multiple of {HALVINGS}": bool(model.image_size % HALVINGS),
    }
    refuse(checkpoint, "AlignModel", reasons)
    width, depth = SIZES[str(size)]
    seen = {"image_size": model.image_size, "width_coefficient": width, "depth_coefficient": depth}
    text = text_fields(checkpoint.task.model.text.bert)
    config = AlignConfig(text_config=text, vision_config=seen, projection_dim=model.embedding_dim)
    return Target(AlignModel(config), align_table(model), compare_embeddings, "AlignProcessor", segments=True)


def _size(name: str) -> str | None:
    """The size of a timm name; None where it is no EfficientNet that pads as TensorFlow does."""
    before, _, size = name.partition(".")[0].rpartition("_")
    return size if before == "tf_efficientnet" and size in SIZES else None
