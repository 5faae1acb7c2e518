"""Weights of a composition for the same composition at another image size.

timm's transformers have their own rules for positions and relative biases; linear patches stretch as they do in the
forward. All else does not depend on the size of the image.

Shapes: D width, h x w places.
"""

from collections.abc import Mapping

from torch import Tensor

from pretrain.models.build import DuoModel
from pretrain.models.patches import PatchEmbedder, stretch
from pretrain.models.vision import ImageEncoder, published_filter
from shards.errors import UserError

BACKBONE = "vision.backbone."


def at_size(weights: Mapping[str, Tensor], model: DuoModel) -> dict[str, Tensor]:
    """`weights` of a model that differs from `model` in its image size alone, in the shapes of `model`.

    Raises:
        UserError: a backbone whose positions timm cannot stretch.
    """
    wanted = model.state_dict()
    if not (odd := [name for name, value in weights.items() if name in wanted and value.shape != wanted[name].shape]):
        return dict(weights)
    vision = model.vision
    if isinstance(vision, PatchEmbedder):
        rows, columns = vision.positions.shape[2:]
        return {**weights, "vision.positions": stretch(weights["vision.positions"], rows, columns)}
    if not isinstance(vision, ImageEncoder) or not odd[0].startswith(BACKBONE):
        raise UserError(f"`ckpt` has {odd[0]} in another shape than the model")
    return {**weights, **_timm_resized(weights, vision)}


def _timm_resized(weights: Mapping[str, Tensor], vision: ImageEncoder) -> dict[str, Tensor]:
    """By the filter that timm loads its own pretrained weights with."""
    own = {name.removeprefix(BACKBONE): value for name, value in weights.items() if name.startswith(BACKBONE)}
    resize = published_filter(vision.backbone)
    found = own if resize is None else resize(own, vision.backbone)
    wanted = vision.backbone.state_dict()
    if odd := [name for name, value in found.items() if name in wanted and value.shape != wanted[name].shape]:
        raise UserError(
            f"`model.image_size` (={vision.image_size}) must be that of the checkpoint: timm cannot stretch {odd[0]} "
            f"of {vision.config.name}"
        )
    # What the filter drops (windows and masks that follow from the size) is made by the model itself.
    return {f"{BACKBONE}{name}": value for name, value in {**wanted, **found}.items()}
