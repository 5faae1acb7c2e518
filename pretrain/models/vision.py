"""Image encoders: any timm backbone that yields a sequence of tokens or a grid of features.

Shapes: B images, H x W pixels, N tokens (prefix tokens included), D width.
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.models.config import VisionConfig
from pretrain.models.convert.efficientnet import timm_names
from pretrain.models.convert.files import read_tensors
from pretrain.models.interface import ImageInput
from pretrain.models.tokens import ImageTokens, pick, random_subset
from pretrain.places import HUB, locate
from shards.errors import UserError, nearest

TIMM = "timm"
"""What `weights` says for the repository of timm's own pretrained tag."""


class ImageEncoder(nn.Module):
    """A timm backbone: uint8 pixels -> tokens and one pooled vector; normalises on the device it runs on."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: VisionConfig, image_size: int) -> None:
        super().__init__()
        self.config, self.image_size = config, image_size
        self.backbone = _create(config, image_size)
        self.any_shape = not _sized(self.backbone)
        self.pooled_width: int = self.backbone.head_hidden_size
        inner = self.backbone.num_features if config.tokens == "all" else self.pooled_width
        self.width: int = config.width or inner
        has_prefix = config.tokens == "all" and not config.grids
        self.prefix: int = getattr(self.backbone, "num_prefix_tokens", 0) if has_prefix else 0
        self.project = nn.Linear(inner, config.width) if config.width else nn.Identity()
        data = timm.data.resolve_model_data_config(self.backbone)
        self.register_buffer("mean", torch.tensor(data["mean"]) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(data["std"]) * 255, persistent=False)

    def forward(self, image: ImageInput) -> ImageTokens:
        """Tokens float [B, N, D], pooled float [B, P]."""
        assert image.pixels_BHWC is not None
        if image.sizes_B2 is None:
            tokens_BND, pooled_BP = self._encode(image.pixels_BHWC)
            mask_BN = torch.ones(tokens_BND.shape[:2], dtype=torch.bool, device=tokens_BND.device)
        else:
            tokens_BND, mask_BN, pooled_BP = self._by_shape(image.pixels_BHWC, image.sizes_B2)
        if self.training and self.config.subset:
            places_BK = random_subset(mask_BN, self.config.subset)
            tokens_BND, mask_BN = pick(tokens_BND, places_BK), mask_BN.gather(1, places_BK)
        return ImageTokens(self.project(tokens_BND), mask_BN, pooled_BP)

    def _by_shape(self, pixels_BHWC: Tensor, sizes_B2: Tensor) -> ImageTokens:
        """Images of one shape together: what pads an image never reaches the network, whose edges it would change."""
        sizes = [tuple(size) for size in sizes_B2.tolist()]  # host sync here
        rows = {size: [row for row, other in enumerate(sizes) if other == size] for size in dict.fromkeys(sizes)}
        parts = [self._encode(pixels_BHWC[picked, : size[0], : size[1]]) for size, picked in rows.items()]
        longest = max(tokens_bND.shape[1] for tokens_bND, _ in parts)
        tokens = [F.pad(tokens_bND, (0, 0, 0, longest - tokens_bND.shape[1])) for tokens_bND, _ in parts]
        masks = [torch.arange(longest).expand(len(t), -1) < t.shape[1] for t, _ in parts]
        order_B = torch.tensor([row for picked in rows.values() for row in picked]).argsort().to(sizes_B2.device)
        mask_BN = torch.cat(masks).to(sizes_B2.device)[order_B]
        return ImageTokens(torch.cat(tokens)[order_B], mask_BN, torch.cat([pooled for _, pooled in parts])[order_B])

    def _encode(self, pixels_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens float [B, N, D] and pooled float [B, P] of images of one shape."""
        dtype = next(self.backbone.parameters()).dtype
        normal_BHWC = (pixels_BHWC.float() - self.mean) / self.std
        features = self.backbone.forward_features(normal_BHWC.permute(0, 3, 1, 2).to(dtype))
        pooled_BP = self.backbone.forward_head(features, pre_logits=True)
        if self.config.tokens == "pooled":
            tokens_BND = pooled_BP[:, None]
        elif self.config.grids:
            tokens_BND = cells(as_grid(features, self.backbone.num_features), self.config.grids)
        else:
            tokens_BND = as_tokens(features, self.backbone.num_features)
        return tokens_BND, pooled_BP

    def example(self) -> ImageInput:
        """One black image."""
        return ImageInput(torch.zeros(1, self.image_size, self.image_size, 3, dtype=torch.uint8))


def as_tokens(features: Tensor, width: int) -> Tensor:
    """float [B, N, D], a grid row by row."""
    return features if features.ndim == 3 else as_grid(features, width).flatten(2).transpose(1, 2)


def as_grid(features: Tensor, width: int) -> Tensor:
    """float [B, D, h, w]: Swin yields NHWC, convolutional networks NCHW."""
    return features.movedim(-1, 1) if features.shape[-1] == width else features


def cells(grid_BDhw: Tensor, sides: Sequence[int]) -> Tensor:
    """Means over the cells of `side` x `side` cuts, the sides one after the other; float [B, N, D]."""
    cuts = [F.adaptive_avg_pool2d(grid_BDhw, side).flatten(2) for side in sides]
    return torch.cat(cuts, 2).transpose(1, 2)


def timm_place(name: str) -> str:
    """The repository with timm's weights of a model: of the tag behind its name, else of the default one.

    Raises:
        UserError: no such model or tag, or weights that timm publishes in no safetensors file of its own names.
    """
    _check_name(name)
    try:
        published = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise UserError(f"`model.vision.name` (={name}) is refused by timm: {error}") from None
    file = published and (published.hf_hub_filename or "model.safetensors")
    if published is None or not published.hf_hub_id or file != "model.safetensors":
        raise UserError(f"`model.vision.weights` (={TIMM}): timm has no safetensors of {name} on a hub")
    return f"{HUB}{published.hf_hub_id}"


def published_filter(model: nn.Module) -> Callable[..., dict[str, Tensor]] | None:
    """timm's own function from published tensors to those of a model of this family, at the model's image size."""
    return getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)


def _check_name(name: str) -> None:
    if not timm.is_model(name.split(".")[0]):
        raise UserError(f"`model.vision.name` (={name}) is not a timm model{nearest(name, timm.list_models())}")


def _create(config: VisionConfig, image_size: int) -> Any:
    _check_name(config.name)
    options = dict(config.options)
    if _takes_image_size(config.name):
        options["img_size"] = image_size
    try:
        model = timm.create_model(config.name, pretrained=False, num_classes=0, **options)
    except (TypeError, ValueError, AssertionError, KeyError, RuntimeError) as error:  # timm has no exception of its own
        raise UserError(f"`model.vision.options` (={config.options}) is refused by {config.name}: {error}") from None
    if config.weights is not None:
        place = timm_place(config.name) if config.weights == TIMM else config.weights
        _load(model, locate("model.vision.weights", place))
    if not config.last_conv:
        _leave_out_last_conv(model, config.name)
    if config.stages:
        _leave_out_stages(model, config.stages, config.name)
    if config.grids is not None and int(getattr(model, "num_prefix_tokens", 0)):
        raise UserError(f"`model.vision.grids` (={config.grids}) are cut from a grid, and {config.name} yields none")
    return model


def _leave_out_last_conv(model: Any, name: str) -> None:
    if not hasattr(model, "conv_head"):
        raise UserError(f"`model.vision.last_conv` (=false) is for EfficientNets, not {name}")
    model.num_features = model.head_hidden_size = model.conv_head.in_channels
    model.conv_head, model.bn2 = nn.Identity(), nn.Identity()


def _leave_out_stages(model: Any, stages: int, name: str) -> None:
    if not hasattr(model, "layer4"):
        raise UserError(f"`model.vision.stages` (={stages}) is for ResNets, not {name}")
    model.num_features = model.head_hidden_size = model.feature_info[stages]["num_chs"]  # 0 is the stem
    for stage in range(stages + 1, 5):
        setattr(model, f"layer{stage}", nn.Identity())


def _takes_image_size(name: str) -> bool:
    """Transformers with position tables are built for one size; convolutional networks take any."""
    with torch.device("meta"):
        return _sized(timm.create_model(name))


def _sized(model: nn.Module) -> bool:
    return "img_size" in inspect.signature(type(model).__init__).parameters


def _load(model: nn.Module, path: Path) -> None:
    device, resize = next(model.parameters()).device, published_filter(model)
    try:
        with torch.device("cpu"):  # what the filter makes itself lies where the weights do
            given = timm_names(read_tensors(path), model)
            given = resize(given, model) if resize else given
    except UserError as error:
        raise UserError(f"`model.vision.weights` (={path}) {str(error).partition(') ')[2]}") from None
    except (RuntimeError, LookupError, ValueError) as error:
        raise UserError(f"`model.vision.weights` (={path}) cannot be loaded: {' '.join(str(error).split())}") from None
    own = model.state_dict()
    missing = sorted(own.keys() - given.keys())
    unknown = sorted(name for name in given.keys() - own.keys() if not name.startswith(("head.", "fc.", "classifier.")))
    if missing or unknown:
        raise UserError(
            f"`model.vision.weights` (={path}) does not fit: {len(missing)} missing (first {missing[:1]}), "
            f"{len(unknown)} unknown (first {unknown[:1]})"
        )
    if unlike := [name for name in own if own[name].shape != given[name].shape]:
        raise UserError(
            f"`model.vision.weights` (={path}) does not fit: {len(unlike)} tensors have other shapes, the first is "
            f"{unlike[0]}: {list(given[unlike[0]].shape)}, which must be {list(own[unlike[0]].shape)}"
        )
    # On the meta device there is nothing to copy into, but names and shapes are compared.
    weights = {name: given[name].to(device) for name in own}
    model.load_state_dict(weights, assign=device.type == "meta")
