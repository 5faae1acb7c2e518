"""Which class of transformers computes what a checkpoint computes.

Each architecture's module has a function for it; the trunk chooses which is asked.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pretrain.checkpoint import Checkpoint
from pretrain.models.config import FusionConfig, VisionConfig
from pretrain.models.convert.probe import Probe
from pretrain.models.convert.rules import Table
from pretrain.models.vision import ImageEncoder
from pretrain.task import Task
from shards.errors import UserError

Compare = Callable[[Any, Probe], list[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Target:
    """A model of transformers, still with weights of its own.

    Attributes:
        theirs: The model.
        table: From its names to ours; it is read backwards.
        compare: That model's outputs for a probe, ours before theirs in each pair.
        processor: The class that reads texts and images for it; None where regions come from elsewhere.
        segments: Whether it takes token types.
    """

    theirs: Any
    table: Table
    compare: Compare
    processor: str | None
    segments: bool


def objective(task: Task, name: str) -> nn.Module | None:
    """The head of that name; None where it is not trained."""
    return dict(task.objectives.items()).get(name)


def refuse(checkpoint: Checkpoint, kind: str, reasons: Mapping[str, bool]) -> None:
    """Raises the first reason that holds.

    Raises:
        UserError: any does.
    """
    for reason, holds in reasons.items():
        if holds:
            raise UserError(f"`ckpt` (={checkpoint.path}) is no {kind}: {reason}")


def vit_reasons(vision: nn.Module, config: VisionConfig) -> dict[str, bool]:
    """What no vision transformer with a class token has."""
    backbone = vision.backbone if isinstance(vision, ImageEncoder) and config.width is None else None
    token = getattr(backbone, "global_pool", None) == "token"
    return {f"`model.vision.name` (={config.name}) is not a plain vision transformer with a class token": not token}


def vit_fields(vision: ImageEncoder, image_size: int) -> dict[str, Any]:
    """The shape of a vision transformer."""
    backbone = vision.backbone
    block = backbone.blocks[0]
    return {
        "image_size": image_size,
        "patch_size": backbone.patch_embed.patch_size[0],
        "hidden_size": backbone.embed_dim,
        "intermediate_size": block.mlp.fc1.out_features,
        "num_hidden_layers": len(backbone.blocks),
        "num_attention_heads": block.attn.num_heads,
        "layer_norm_eps": backbone.norm.eps,
    }


def text_fields(bert: Any) -> dict[str, Any]:
    """The shape of text embeddings and of the layers behind them."""
    names = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "hidden_act",
        "max_position_embeddings",
        "type_vocab_size",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "layer_norm_eps",
        "pad_token_id",
    )
    return {name: getattr(bert.config, name) for name in names}


def trunk_fields(fusion: FusionConfig, width: int) -> dict[str, Any]:
    """The shape of a trunk's layers."""
    return {
        "num_hidden_layers": fusion.depth,
        "num_attention_heads": fusion.heads,
        "intermediate_size": fusion.hidden or 4 * width,
        "hidden_act": fusion.activation,
        "hidden_dropout_prob": fusion.dropout,
        "attention_probs_dropout_prob": fusion.dropout,
        "layer_norm_eps": fusion.eps,
    }


def compare_embeddings(theirs: Any, probe: Probe) -> list[tuple[Tensor, Tensor]]:
    """Of a dual encoder."""
    expected, (image, text) = theirs(**probe.words, **probe.pixels), probe.encoded
    return [(image.embedding_BE, expected.image_embeds), (text.embedding_BE, expected.text_embeds)]
