"""Names of the `efficientnet_pytorch` package, in which EfficientNets have been published since 2019, to those of timm.

_blocks.3._expand_conv.weight -> blocks.2.1.conv_pw.weight      theirs count blocks, timm's stages and their blocks
"""

from collections.abc import Mapping

from torch import Tensor, nn

MARK = "_conv_stem.weight"
OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
EXCITATION = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
EXPANDING = EXCITATION | {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
SEPARABLE = EXCITATION | {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def timm_names(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors under the names of a timm EfficientNet; those of another origin, or for another model, unchanged."""
    stages = getattr(model, "blocks", None)
    if MARK not in tensors or not isinstance(stages, nn.Sequential):
        return dict(tensors)
    places = [
        f"blocks.{stage}.{block}" for stage, blocks in stages.named_children() for block, _ in blocks.named_children()
    ]
    return {_renamed(name, tensors, places): tensor for name, tensor in tensors.items()}


def _renamed(name: str, tensors: Mapping[str, Tensor], places: list[str]) -> str:
    head, _, rest = name.partition(".")
    if head != "_blocks":
        return f"{OUTSIDE.get(head, head)}.{rest}"
    number, module, leaf = rest.split(".", 2)
    if int(number) >= len(places):
        return name
    inside = EXPANDING if f"_blocks.{number}._expand_conv.weight" in tensors else SEPARABLE
    return f"{places[int(number)]}.{inside.get(module, module)}.{leaf}"
