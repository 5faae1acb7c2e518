"""How published weights want their pixels, folded into ours.

Our embedders normalise with the mean and deviation m, s of their timm backbone; published weights may want others, p
and q. (x - p) / q = ((x - m) / s) * (s / q) + (m - p) / q, and the first layer is linear: it takes up the difference.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pretrain.models.patches import PatchEmbedder
from pretrain.models.vision import ImageEncoder
from shards.errors import UserError

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Pixels(NamedTuple):
    """Mean and deviation of each channel, as shares of 255."""

    mean: Sequence[float]
    std: Sequence[float]


def published_pixels(folder: Path, published: Mapping[str, Any]) -> Pixels | None:
    """What preprocessor_config.json or open_clip's own file says; None where nothing does."""
    said = published.get("preprocess_cfg")
    if said is None and (file := folder / "preprocessor_config.json").is_file():
        try:
            said = json.loads(file.read_text())
            said = {"mean": said.get("image_mean"), "std": said.get("image_std")} if said.get("image_mean") else None
        except ValueError as error:
            raise UserError(f"`from` (={file}) is not JSON: {error}") from None
    return Pixels(said["mean"], said["std"]) if said and said.keys() >= {"mean", "std"} else None


def fold(tensors: dict[str, Tensor], vision: nn.Module, pixels: Pixels) -> dict[str, Tensor]:
    """The tensors with a first layer that takes pixels as `vision` normalises them.

    Raises:
        UserError: the first layer has no bias that a shift could go to.
    """
    if isinstance(vision, ImageEncoder):
        first, m, s = "model.vision.backbone.patch_embed.proj.", vision.mean / 255, vision.std / 255
    elif isinstance(vision, PatchEmbedder):
        own = vision.config
        first, m, s = "model.vision.projection.", torch.full((3,), own.mean), torch.full((3,), own.std)
    else:
        return tensors  # regions have no pixels
    p, q = (torch.tensor(list(values)) for values in pixels)
    if torch.allclose(p, m, atol=1e-6) and torch.allclose(q, s, atol=1e-6):
        return tensors
    weight, bias = tensors.get(f"{first}weight"), tensors.get(f"{first}bias")
    if weight is None or bias is None:
        raise UserError(
            f"`from` normalises pixels by mean {list(pixels.mean)} and deviation {list(pixels.std)}, "
            f"and its first layer has no bias to turn ours ({[round(v, 4) for v in m.tolist()]}) into them"
        )
    shift = torch.einsum("ochw,c->o", weight, (m - p) / q)
    return tensors | {f"{first}weight": weight * (s / q)[:, None, None], f"{first}bias": bias + shift}
