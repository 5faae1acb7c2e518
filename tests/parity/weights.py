"""Copying weights between implementations, and how far apart two tensors are."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pretrain.batch import Batch, Draw
from pretrain.data.masking import IGNORE

KEY_BIASES = ("key.bias", "k_proj.bias", "qkv.bias")


def shake(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights that are not zero or one anywhere, so that each of them shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return module.eval()


def copy(
    ours: nn.Module, theirs: Mapping[str, Tensor | list[Tensor]], by_hand: Mapping[str, Tensor] | None = None
) -> dict[str, list[Tensor]]:
    """Sets every parameter of `ours` to theirs, by name; several of theirs are stacked along the first dimension.

    Args:
        by_hand: Values of parameters whose gradients have no single counterpart.

    Returns:
        By our name what it was copied from: gradients are compared through it.
    """
    named, by_hand = dict(ours.named_parameters()), by_hand or {}
    expected = theirs.keys() | by_hand.keys()
    assert named.keys() == expected, sorted(named.keys() ^ expected)
    sources = {name: value if isinstance(value, list) else [value] for name, value in theirs.items()}
    with torch.no_grad():
        for name, parameter in named.items():
            parts = [by_hand[name]] if name in by_hand else sources[name]
            parameter.copy_((torch.cat(parts) if len(parts) > 1 else parts[0]).reshape(parameter.shape))
    return sources


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


def both(names: Mapping[str, str], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`names` maps modules of ours to theirs; weights and biases of all of them."""
    return {f"{a}.{kind}": given[f"{b}.{kind}"] for a, b in names.items() for kind in ("weight", "bias")}


def bert_attention(ours: str, theirs: str, norm: str) -> dict[str, str]:
    """Attention with its norm, and where BERT-like code keeps them."""
    parts = {part: f"{theirs}.self.{part}" for part in ("query", "key", "value")} | {"out": f"{theirs}.output.dense"}
    return {f"{ours}.{a}": b for a, b in parts.items()} | {norm: f"{theirs}.output.LayerNorm"}


def bert_layer(ours: str, theirs: str) -> dict[str, str]:
    """A post-norm block of ours and where BERT-like code keeps the same modules."""
    feed = {
        f"{ours}.feed_forward.0": f"{theirs}.intermediate.dense",
        f"{ours}.feed_forward.3": f"{theirs}.output.dense",
    }
    norm = {f"{ours}.norms.1": f"{theirs}.output.LayerNorm"}
    attention = bert_attention(f"{ours}.self_attention", f"{theirs}.attention", f"{ours}.norms.0")
    return attention | feed | norm


def word_head(ours: str, theirs: str, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BERT's head that predicts words."""
    names = {f"{ours}.transform.0": f"{theirs}.transform.dense", f"{ours}.transform.2": f"{theirs}.transform.LayerNorm"}
    bias = f"{theirs}.bias" if f"{theirs}.bias" in given else f"{theirs}.decoder.bias"
    return both(names, given) | {f"{ours}.bias": given[bias]}


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
