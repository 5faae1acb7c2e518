"""Optimal transport between two sets of features: how words and regions are laid onto each other.

The plan comes from the inexact proximal point method (IPOT, Xie et al., arXiv:1802.04307, algorithm 1 with one inner
step), as UNITER (arXiv:1909.11740, section 3.2) and ViLT use it: the cost is 1 - cosine, all items of a set weigh the
same, and no gradient flows through the plan.

Shapes: B pairs, S and T items of the two sets, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.precision import in_full_precision

TINY = 1e-30  # keeps divisions by places without an item finite; a weight is never this small


@in_full_precision
def transport_distance(
    one_BSD: Tensor, other_BTD: Tensor, mask_BS: Tensor, mask_BT: Tensor, beta: float = 0.5, iterations: int = 50
) -> Tensor:
    """The cost of laying one set onto the other by its (nearly) cheapest plan; float [B], 0 where a set is empty.

    Args:
        one_BSD, other_BTD: float, not necessarily normalised.
        mask_BS, mask_BT: bool, True where there is an item.
    """
    cost_BST = 1 - F.normalize(one_BSD, dim=-1) @ F.normalize(other_BTD, dim=-1).transpose(1, 2)
    plan_BST = transport_plan(cost_BST.detach(), mask_BS, mask_BT, beta=beta, iterations=iterations)
    return (cost_BST * plan_BST).sum((1, 2))


@torch.no_grad()
@in_full_precision
def transport_plan(
    cost_BST: Tensor, mask_BS: Tensor, mask_BT: Tensor, beta: float = 0.5, iterations: int = 50
) -> Tensor:
    """How much of each item goes where; float [B, S, T], summing to 1, 0 where there is no item."""
    rows_BS1 = _equal_weights(mask_BS, cost_BST.dtype)[..., None]
    columns_B1T = _equal_weights(mask_BT, cost_BST.dtype)[:, None]
    kernel_BST = (-cost_BST / beta).exp() * (rows_BS1 > 0) * (columns_B1T > 0)
    plan_BST, scale_B1T = (kernel_BST > 0).to(cost_BST.dtype), columns_B1T
    for _ in range(iterations):
        proximal_BST = kernel_BST * plan_BST
        scale_BS1 = rows_BS1 / (proximal_BST * scale_B1T).sum(2, keepdim=True).clamp(min=TINY)
        scale_B1T = columns_B1T / (proximal_BST * scale_BS1).sum(1, keepdim=True).clamp(min=TINY)
        plan_BST = scale_BS1 * proximal_BST * scale_B1T
    return plan_BST


def _equal_weights(mask_BT: Tensor, dtype: torch.dtype) -> Tensor:
    weights_BT = mask_BT.to(dtype)
    return weights_BT / weights_BT.sum(1, keepdim=True).clamp(min=1)
