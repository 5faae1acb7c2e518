"""Where a model repeats itself: its towers, and the blocks each is a stack of.

A block is an element of a `ModuleList` or `Sequential` whose elements all hold parts with parameters (layers of a
transformer, stages of a convolutional network), and that is not inside another block. Heads and feed-forwards, lists of
single layers, are no blocks.
"""

from collections.abc import Iterator

from torch import nn

TRUNK = "model.fusion"
TOWERS = ("model.vision", "model.text", TRUNK)


def blocks(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of all blocks, each stack in its order."""
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if _is_stack(child):
            yield from ((f"{path}.{index}", block) for index, block in child.named_children())
        else:
            yield from blocks(child, f"{path}.")


def heights(module: nn.Module) -> dict[str, int]:
    """How many blocks a parameter's output still passes before the heads, itself included, by parameter name.

    Zero for heads; one for the top block of the trunk; encoders stand below the whole trunk. What comes before the
    first block of a tower (embeddings) counts as one more block.
    """
    stacks = {tower: [name for name, _ in blocks(module) if name.startswith(f"{tower}.")] for tower in TOWERS}
    found = {}
    for tower, names in stacks.items():
        above, passed = 0 if tower == TRUNK else len(stacks[TRUNK]), -1
        for parameter, _ in module.named_parameters():
            if parameter.startswith(f"{tower}."):
                inside = [index for index, block in enumerate(names) if parameter.startswith(f"{block}.")]
                passed = inside[0] if inside else _behind(passed, len(names))
                found[parameter] = above + len(names) - passed
    return {name: found.get(name, 0) for name, _ in module.named_parameters()}


def _behind(passed: int, count: int) -> int:
    """A parameter outside of the blocks: before the first, between two of them, or behind the last."""
    return count if passed >= count - 1 >= 0 else passed


def _is_stack(module: nn.Module) -> bool:
    elements = list(module.children())
    return isinstance(module, nn.ModuleList | nn.Sequential) and bool(elements) and all(map(_is_composite, elements))


def _is_composite(module: nn.Module) -> bool:
    return any(any(True for _ in child.parameters()) for child in module.children())
