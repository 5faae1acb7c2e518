"""Initial weights of a trunk, from a text encoder or an image encoder that was trained alone.

ALBEF, BLIP, X-VLM: BERT's layers become those in which the text queries the image; the cross-attention starts anew
UNITER, OSCAR, VL-BERT, ...: BERT's layers read words and regions       ViLT: those of a ViT read words and patches
ViLBERT: the upper half of BERT's layers become the text's own between the bridges
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pretrain.models.co_attention import CoAttention
from pretrain.models.config import FusionConfig
from pretrain.models.convert.bert import layer
from pretrain.models.convert.files import read_tensors
from pretrain.models.convert.rules import OPERATIONS, Rule, modules
from pretrain.models.encoder_decoder import EncoderDecoder
from pretrain.models.fusion import TextQueriesImage
from pretrain.models.joint import Joint
from pretrain.places import locate
from shards.errors import UserError

PREFIXES = ("bert.", "roberta.", "model.")
"""What stands before the names of an encoder that was saved with a head."""


def start_trunk(trunk: nn.Module, config: FusionConfig) -> None:
    """Copies what `config.weights` holds into the trunk's layers; on the meta device it only looks whether it fits.

    Raises:
        UserError: nothing readable there, too few layers, or layers of another shape or kind.
    """
    given = _read(config.weights)
    vit = any(name.startswith("blocks.") for name in given)
    if vit != (config.norm == "pre"):
        kind = "a ViT, whose layers are pre-norm" if vit else "a BERT, whose layers are post-norm"
        raise UserError(
            f"`model.fusion.weights` (={config.weights}) holds {kind}, and `model.fusion.norm` is {config.norm}"
        )
    last_norm = 2 if isinstance(trunk, TextQueriesImage) else 1  # between lies the norm of the cross-attention
    rules = [rule for ours, number in _places(trunk, config) for rule in _layer(ours, number, vit, last_norm)]
    ends = {"norm": "final_norm"} if vit else {"pooler.dense": "pooler.text"} if config.pooler == "tanh" else {}
    rules += [rule for rule in modules("", "", ends) if rule.theirs[0].format(kind="weight") in given]
    own = trunk.state_dict()
    for rule in rules:
        for kind in ("weight", "bias"):
            _copy(rule, kind, given, own, config)


def _read(place: str | None) -> dict[str, Tensor]:
    path = locate("model.fusion.weights", place or "")
    try:
        tensors = read_tensors(path)
    except UserError as error:
        raise UserError(f"`model.fusion.weights` (={path}) {str(error).partition(') ')[2]}") from None
    for prefix in PREFIXES:
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _places(trunk: nn.Module, config: FusionConfig) -> list[tuple[str, int]]:
    """Names of our layers, and the number of theirs that each starts as."""
    match trunk:
        case Joint() | TextQueriesImage():
            names = [f"blocks.{index}" for index in range(len(trunk.blocks))]
        case CoAttention():
            names = [f"blocks.{index}" for index, kind in enumerate(trunk.placement) if kind == "text"]
        case EncoderDecoder():
            names = [f"encoder.{index}" for index in range(len(trunk.encoder))]
        case _:
            names = []
    if not names:
        raise UserError(
            f"`model.fusion.weights` (={config.weights}) fits no layer of `model.fusion.trunk` (={config.trunk})"
        )
    return [(name, config.first_layer + index) for index, name in enumerate(names)]


def _layer(ours: str, number: int, vit: bool, last_norm: int) -> list[Rule]:
    if not vit:
        return [*layer(f"encoder.layer.{number}", ours, last_norm)]
    theirs, inside = f"blocks.{number}.", f"{ours}.self_attention."
    qkv = tuple(f"{inside}{part}.{{kind}}" for part in ("query", "key", "value"))
    names = {
        "mlp.fc1": "feed_forward.0",
        "mlp.fc2": "feed_forward.3",
        "norm1": "norms.0",
        "norm2": f"norms.{last_norm}",
    }
    return [
        Rule((f"{theirs}attn.qkv.{{kind}}",), qkv, "split"),
        *modules(theirs, f"{ours}.", names | {"attn.proj": "self_attention.out"}),
    ]


def _copy(rule: Rule, kind: str, given: Mapping[str, Tensor], own: Mapping[str, Tensor], config: FusionConfig) -> None:
    [theirs] = (name.format(kind=kind) for name in rule.theirs)
    ours = [name.format(kind=kind) for name in rule.ours]
    if theirs not in given:
        raise UserError(
            f"`model.fusion.weights` (={config.weights}) lacks {theirs}: with `model.fusion.first_layer` "
            f"(={config.first_layer}) the trunk asks for more layers than it holds"
        )
    shapes = [own[name].shape for name in ours]
    for name, tensor in zip(ours, OPERATIONS[rule.how]([given[theirs]], shapes), strict=True):
        if tensor.shape != own[name].shape:
            raise UserError(
                f"`model.fusion.weights` (={config.weights}) does not fit: {theirs} gives `model.fusion.{name}` shape "
                f"{list(tensor.shape)}, which must be {list(own[name].shape)}"
            )
        if own[name].device.type != "meta":
            with torch.no_grad():
                own[name].copy_(tensor)
