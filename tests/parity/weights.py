"""Copying weights between implementations, and how far apart two tensors are."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pretrain.batch import Batch, Draw
from pretrain.data.masking import IGNORE
from pretrain.models.convert.rules import OPERATIONS, Table

KEY_BIASES = ("key.bias", "k_proj.bias", "qkv.bias")


def shake(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights that are not zero or one anywhere, so that each of them shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return module.eval()


def copy(
    ours: nn.Module, table: Table, theirs: nn.Module, by_hand: Mapping[str, Tensor] | None = None
) -> dict[str, list[Tensor]]:
    """Sets every parameter and statistic of `ours` to what `table` makes of theirs.

    Args:
        by_hand: Values of parameters that theirs does not have.

    Returns:
        By our name what it was copied from, or stacked from: gradients are compared through it.
    """
    learned, named, given = dict(ours.named_parameters()), _numbers(ours), _numbers(theirs)
    values, sources = dict(by_hand or {}), {}
    values |= {name: torch.zeros_like(named[name]) for name in table.zeros}
    for step in table.steps(given):
        parts, mine = [given[name] for name in step.theirs], [name for name in step.ours if name in named]
        made = OPERATIONS[step.how]([part.detach() for part in parts], [None] * len(step.ours))
        values |= {name: value for name, value in zip(step.ours, made, strict=True) if name in mine}
        if step.how in ("copy", "stack") or (step.how == "share" and len(mine) == 1):
            sources |= {name: parts for name in mine if name in learned}
    assert named.keys() == values.keys(), sorted(named.keys() ^ values.keys())
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(values[name].reshape(parameter.shape))
    return sources


def _numbers(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, each once, and what a BatchNorm has counted."""
    saved = module.state_dict()
    counted = {name: buffer for name, buffer in module.named_buffers() if name in saved and buffer.is_floating_point()}
    return dict(module.named_parameters()) | counted


def distance(found: Tensor, expected: Tensor) -> float:
    """Largest difference as a share of the largest expected value."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return float((found.detach() - expected.detach()).abs().max() / expected.detach().abs().max())


def worst_gradient(ours: nn.Module, sources: Mapping[str, list[Tensor]]) -> float:
    """The largest `distance` between gradients of parameters that have one name for one tensor."""
    worst = 0.0
    named = dict(ours.named_parameters())
    for name in sources:
        parameter = named[name]
        theirs = [source.grad for source in sources[name]]
        if parameter.grad is None:
            assert all(grad is None or not grad.any() for grad in theirs), name
            continue
        expected = torch.cat([grad for grad in theirs if grad is not None]).reshape(parameter.shape)
        keep = torch.ones(len(expected), dtype=torch.bool)
        if name.endswith(KEY_BIASES):  # rounding alone: a softmax does not see what all its scores share
            keep[:] = len(theirs) == 3
            keep[len(expected) // 3 : 2 * len(expected) // 3] = False
        if keep.any():
            worst = max(worst, distance(parameter.grad[keep], expected[keep]))
    return worst


def batch_of(pixels_BHWC: Tensor | None, ids_BL: Tensor, mask_BL: Tensor, **fields: Tensor) -> Batch:
    """Pairs that are no group, with no word hidden unless `fields` say so."""
    pairs = len(ids_BL)
    made = {
        "masked_ids_BL": ids_BL,
        "masked_labels_BL": torch.full_like(ids_BL, IGNORE),
        "group_B": torch.arange(pairs),
        "draws_BK": torch.zeros(pairs, len(Draw), dtype=torch.float64),
    }
    return Batch(**{"token_ids_BL": ids_BL, "token_mask_BL": mask_BL, "pixels_BHWC": pixels_BHWC} | made | fields)
