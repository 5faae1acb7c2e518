"""Not a test: each pure loss with a random global batch, named."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.distributed import gather, global_mean
from pretrain.objectives.boxes import box_loss
from pretrain.objectives.contrast import (
    contrastive_loss,
    group_targets,
    scaled_similarity,
    sigmoid_contrast,
    soften,
    softmax_contrast,
)
from pretrain.objectives.late_interaction import query_maximum, token_maximum
from pretrain.objectives.queue import FeatureQueue
from pretrain.objectives.regions import (
    UNKNOWN,
    attribute_loss,
    distribution_loss,
    feature_regression,
    label_loss,
)
from pretrain.objectives.transport import transport_distance
from tests.distributed.group import Found, loss_and_gradients

ITEMS = 8
Named = Mapping[str, Tensor]


class Case(NamedTuple):
    """A loss of tensors by name; `rows` are split over the ranks, `shared` is on all of them."""

    loss: Callable[[Named], Tensor]
    rows: Named
    shared: Named


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _pairs(*shape: int) -> dict[str, Tensor]:
    """Directions of images and texts, and groups of which one crosses every split."""
    shape, generator = shape or (ITEMS, 6), _generator()
    image, text = (F.normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1) for _ in range(2))
    return {"image": image, "text": text, "group": torch.tensor([0, 1, 2, 3, 4, 0, 5, 6])}


def _scalars(**values: float) -> dict[str, Tensor]:
    return {name: torch.tensor([value], dtype=torch.float64) for name, value in values.items()}


def _tokens(x: Named) -> Tensor:
    target = group_targets(x["group"], gather(x["group"]), dtype=torch.float64)
    image, text, mask_image, mask_text = x["image"], x["text"], x["mask_image"], x["mask_text"]
    one = token_maximum(image, mask_image, gather(text), gather(mask_text)) / x["temperature"]
    other = token_maximum(text, mask_text, gather(image), gather(mask_image)) / x["temperature"]
    return softmax_contrast(one, target) + softmax_contrast(other, target)


def _queries(x: Named) -> Tensor:
    similarity = query_maximum(x["image"], x["mask_image"], gather(x["text"][:, 0])) / x["temperature"]
    return softmax_contrast(similarity, group_targets(x["group"], gather(x["group"]), dtype=torch.float64))


def _queue(x: Named) -> Tensor:
    """Two steps of a queue that is larger than a batch, with targets softened by a teacher."""
    queue = FeatureQueue(2 * ITEMS, 6).double()
    total = torch.zeros(())
    for step in range(2):
        group = x["group"] + 3 * step
        gallery, groups = torch.cat([gather(x["text"]), queue.text_QE]), torch.cat([gather(group), queue.group_Q])
        logits = scaled_similarity(x["image"], gallery, groups, x["temperature"])
        target = soften(group_targets(group, groups, dtype=torch.float64), 2 * logits, torch.tensor([0.4]))
        total = total + softmax_contrast(logits, target)
        queue.push(gather(x["image"]), gather(x["text"]), gather(group))
    return total


def _masked(tokens: int) -> Tensor:
    return torch.arange(tokens) < torch.tensor([1, 2, 3, 4, 4, 3, 2, 4])[:, None]


def _regions() -> dict[str, Tensor]:
    """Of unequal numbers on the ranks: those that are hidden are picked from a batch."""
    generator = _generator()
    shape = (ITEMS, 3, 5)
    predicted, target = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    label = torch.randint(-1, 5, (ITEMS, 3), generator=generator)
    hidden = torch.arange(ITEMS)[:, None] % 4 > torch.arange(3)
    return {"predicted": predicted, "target": target, "label": torch.where(label < 0, UNKNOWN, label), "hidden": hidden}


def _masked_regions(x: Named) -> Tensor:
    predicted, target, label = (x[name][x["hidden"]] for name in ("predicted", "target", "label"))
    one = feature_regression(predicted, target) + feature_regression(predicted, target, kind="smooth_l1")
    other = label_loss(predicted, label) + attribute_loss(predicted, label[:, None])
    return one + other + distribution_loss(predicted, target.softmax(1))


def _boxes(x: Named) -> Tensor:
    corners = x["target"][:, 0, :4].sigmoid().sort(dim=1).values
    return box_loss(x["predicted"][:, 0, :4].sigmoid(), corners, x["hidden"][:, 0])


TOKENS = _pairs(ITEMS, 4, 6) | {"mask_image": _masked(4), "mask_text": _masked(4).flip(0)}
CASES = {
    "contrast": Case(
        lambda x: contrastive_loss(x["image"], x["text"], x["group"], x["temperature"], label_smoothing=0.1),
        _pairs(),
        _scalars(temperature=0.1),
    ),
    "sigmoid": Case(
        lambda x: sigmoid_contrast(x["image"], x["text"], x["group"], x["temperature"], x["bias"]),
        _pairs(),
        _scalars(temperature=0.1, bias=-1.0),
    ),
    "token maximum": Case(_tokens, TOKENS, _scalars(temperature=0.1)),
    "query maximum": Case(_queries, {k: v for k, v in TOKENS.items() if k != "mask_text"}, _scalars(temperature=0.1)),
    "masked regions": Case(_masked_regions, _regions(), {}),
    "boxes": Case(_boxes, _regions(), {}),
    "transport": Case(
        lambda x: global_mean(transport_distance(x["image"], x["text"], x["mask_image"], x["mask_text"])), TOKENS, {}
    ),
    "queue": Case(_queue, _pairs(), _scalars(temperature=0.1)),
}


def all_losses() -> dict[str, Found]:
    return {name: loss_and_gradients(*case) for name, case in CASES.items()}
