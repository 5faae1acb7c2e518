"""Contrast and sigmoid loss against open_clip's, values and gradients, on one rank and on two."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain import distributed
from pretrain.objectives.contrast import contrastive_loss, sigmoid_contrast
from tests.distributed.group import Found, mean_over_ranks, over_ranks, rows_of_rank

PAIRS, WIDTH = 8, 16


def inputs() -> list[Tensor]:
    """This rank's images and texts, the scale and the bias, as leaves."""
    generator = torch.Generator().manual_seed(0)
    sides = [F.normalize(torch.randn(PAIRS, WIDTH, generator=generator), dim=-1) for _ in range(2)]
    leaves = [*map(rows_of_rank, sides), torch.tensor([14.0]), torch.tensor([-3.0])]
    return [leaf.clone().requires_grad_() for leaf in leaves]


KINDS = {
    "softmax, own rows": {"local_loss": True, "gather_with_grad": True},
    "softmax, all rows": {"local_loss": False, "gather_with_grad": True},
    "sigmoid, ring both ways": {"dist_impl": "bidir"},
    "sigmoid, ring": {"dist_impl": "shift"},
    "sigmoid, sums": {"dist_impl": "reduce"},
    "sigmoid, gathered": {"dist_impl": "gather"},
}
"""open_clip's ways to the same losses across ranks."""


def ours(kind: str, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    group = rows_of_rank(torch.arange(PAIRS))
    if kind.startswith("softmax"):
        return contrastive_loss(image, text, group, 1 / scale)
    return sigmoid_contrast(image, text, group, 1 / scale, bias)


def theirs(kind: str, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    from open_clip.loss import ClipLoss, SigLipLoss

    place = {"rank": distributed.rank(), "world_size": distributed.world()}
    if kind.startswith("softmax"):
        return ClipLoss(**KINDS[kind], **place)(image, text, scale)
    return SigLipLoss(**KINDS[kind], **place)(image, text, scale, bias)


def compared() -> dict[str, list[Found]]:
    """Kind -> the loss and the gradients, ours and theirs."""
    found: dict[str, list[Found]] = {}
    for kind in KINDS:
        found[kind] = []
        for loss in (ours, theirs):
            leaves = inputs()
            value = loss(kind, *leaves)
            value.backward()
            names = ("image", "text", "scale", "bias")
            gradients = {n: leaf.grad for n, leaf in zip(names, leaves, strict=True) if leaf.grad is not None}
            shared = {n: mean_over_ranks(gradients.pop(n)) for n in ("scale", "bias") if n in gradients}
            found[kind].append({"loss": mean_over_ranks(value.detach().squeeze()), **gradients, **shared})
    return found


@pytest.mark.parametrize("world", [1, 2])
def test_losses_and_gradients_are_those_of_open_clip(world, tmp_path):
    for rank in over_ranks(world, tmp_path, compared) if world > 1 else [compared()]:
        for kind, (mine, other) in rank.items():
            assert mine.keys() == other.keys()
            assert len(mine) == (4 if kind.startswith("softmax") else 5)
            for name in mine:
                # Measured: at most 2.2e-7 of the largest entry, float32.
                torch.testing.assert_close(mine[name], other[name], rtol=1e-5, atol=1e-7, msg=f"{kind} {name}")
