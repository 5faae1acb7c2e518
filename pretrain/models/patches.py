"""Linear patches as image tokens (ViLT, arXiv:2102.03334): no encoder before the trunk, images of any shape.

Shapes: B images, H x W pixels, h x w patches, N tokens, D width.
"""

from math import isqrt

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pretrain.models.blocks import initialize
from pretrain.models.config import PatchConfig
from pretrain.models.interface import ImageInput
from pretrain.models.tokens import ImageTokens, pick, random_subset
from pretrain.places import locate
from shards.errors import UserError


class PatchEmbedder(nn.Module):
    """Pixels -> patch tokens with positions that stretch to the image's own shape, behind a class token."""

    any_shape = True

    def __init__(self, config: PatchConfig, image_size: int, weights: str | None = None) -> None:
        super().__init__()
        if image_size % config.size:
            raise UserError(f"`model.image_size` (={image_size}) must be a multiple of the patch size (={config.size})")
        self.config, self.width, self.pooled_width = config, config.width, config.width
        self.prefix = int(config.class_token)
        side = image_size // config.size
        self.projection = nn.Conv2d(3, config.width, config.size, config.size)
        self.positions = nn.Parameter(torch.zeros(1, config.width, side, side))
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.width)) if config.class_token else None
        self.drop = nn.Dropout(config.dropout)
        initialize(self)
        for table in (self.positions, self.class_token):
            if table is not None:
                nn.init.normal_(table, std=0.02)
        if weights:
            self._start(weights)

    def forward(self, image: ImageInput) -> ImageTokens:
        """Tokens float [B, N, D], the class token first; what pads an image is masked."""
        assert image.pixels_BHWC is not None
        dtype = self.projection.weight.dtype
        normal_BHWC = (image.pixels_BHWC.to(dtype) / 255 - self.config.mean) / self.config.std
        grid_BDhw = self.projection(normal_BHWC.permute(0, 3, 1, 2))
        positions_BDhw, there_Bhw = self._places(grid_BDhw, image.sizes_B2)
        tokens_BND = (grid_BDhw + positions_BDhw).flatten(2).transpose(1, 2)
        mask_BN = there_Bhw.flatten(1)
        keep = self._keep(mask_BN, image.sizes_B2 is not None)
        if keep < mask_BN.shape[1]:
            places_BK = random_subset(mask_BN, keep)
            tokens_BND, mask_BN = pick(tokens_BND, places_BK), mask_BN.gather(1, places_BK)
        if self.class_token is not None:
            tokens_BND = torch.cat([self.class_token.expand(len(tokens_BND), -1, -1), tokens_BND], 1)
            mask_BN = F.pad(mask_BN, (1, 0), value=True)
        return ImageTokens.pooled_by(self.drop(tokens_BND), mask_BN, "first" if self.prefix else "mean")

    def example(self) -> ImageInput:
        """One image of the size that positions were made for."""
        side = self.config.size * self.positions.shape[-1]
        return ImageInput(torch.zeros(1, side, side, 3, dtype=torch.uint8))

    def _start(self, weights: str) -> None:
        """Patches, positions (stretched to this image size) and class token of a timm ViT."""
        given = read_vit(weights)
        kernel, table_1ND = given["patch_embed.proj.weight"], given["pos_embed"]
        if kernel.shape != self.projection.weight.shape:
            raise UserError(
                f"`model.vision.weights` (={weights}) has patches of shape {list(kernel.shape)}, which must be "
                f"{list(self.projection.weight.shape)}"
            )
        grid_1ND = table_1ND[:, 1:] if "cls_token" in given else table_1ND
        side = isqrt(grid_1ND.shape[1])
        grid_1Dhw = grid_1ND.transpose(1, 2).unflatten(2, (side, side))
        if self.positions.device.type == "meta":
            return
        with torch.no_grad():
            self.projection.weight.copy_(kernel)
            assert self.projection.bias is not None
            self.projection.bias.copy_(given["patch_embed.proj.bias"])
            self.positions.copy_(stretch(grid_1Dhw, self.positions.shape[2], self.positions.shape[3]))
            if self.class_token is not None and "cls_token" in given:
                self.class_token.copy_(given["cls_token"] + table_1ND[:, :1])

    def _keep(self, mask_BN: Tensor, padded: bool) -> int:
        """How many patches go on: the configured random subset in training; padding that no image of the batch needs
        is left out."""
        keep = mask_BN.shape[1]
        if self.training and self.config.subset:
            keep = min(keep, self.config.subset)
        return min(keep, int(mask_BN.sum(1).max())) if padded else keep  # host sync here

    def _places(self, grid_BDhw: Tensor, sizes_B2: Tensor | None) -> tuple[Tensor, Tensor]:
        """Positions and where there is a patch, for each image."""
        images, _, rows, columns = grid_BDhw.shape
        if sizes_B2 is None:
            return stretch(self.positions, rows, columns), grid_BDhw.new_ones(images, rows, columns, dtype=torch.bool)
        sizes = [(height // self.config.size, width // self.config.size) for height, width in sizes_B2.tolist()]
        stretched = {size: stretch(self.positions, *size) for size in set(sizes)}
        positions = [F.pad(stretched[h, w], (0, columns - w, 0, rows - h)) for h, w in sizes]
        patches_B2 = (sizes_B2 // self.config.size)[:, :, None, None]
        row_h1 = torch.arange(rows, device=sizes_B2.device)[:, None]
        column_w = torch.arange(columns, device=sizes_B2.device)
        return torch.cat(positions), (row_h1 < patches_B2[:, 0]) & (column_w < patches_B2[:, 1])


def stretch(positions_1Dhw: Tensor, rows: int, columns: int) -> Tensor:
    """float [1, D, rows, columns]; corners stay corners, as in ViLT's code."""
    if positions_1Dhw.shape[2:] == (rows, columns):
        return positions_1Dhw
    return F.interpolate(positions_1Dhw, (rows, columns), mode="bilinear", align_corners=True)


def read_vit(weights: str) -> dict[str, Tensor]:
    """The tensors of a timm ViT, at least those that stand before its layers.

    Raises:
        UserError: nothing readable there, or another model's.
    """
    path = locate("model.vision.weights", weights)
    try:
        given = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"`model.vision.weights` (={path}) cannot be loaded: {' '.join(str(error).split())}") from None
    if lost := {"patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed"} - given.keys():
        raise UserError(f"`model.vision.weights` (={path}) is not of a timm ViT: it lacks {min(lost)}")
    return given
