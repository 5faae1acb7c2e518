"""Images of different shapes: which size each gets, and how they share a batch.

Shapes: B images, H x W pixels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import default_collate

from pretrain.config import ImageShapeConfig


def kept_size(height: int, width: int, config: ImageShapeConfig) -> tuple[int, int]:
    """Height and width after resizing, each a multiple of `config.multiple` and at least that.

    Rounded as ViLT's official code does it: to the nearest pixel, then down to the multiple.
    """
    shorter, longer = min(height, width), max(height, width)
    scale = config.shortest_edge / shorter
    if scale * longer > config.longest_edge:
        scale = config.longest_edge / longer
    edges = (int(edge * scale + 0.5) // config.multiple for edge in (height, width))
    rows, columns = (max(1, edge) * config.multiple for edge in edges)
    return rows, columns


def pad_pixels(pixels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """uint8 [h, w, 3] each -> uint8 [B, H, W, 3], black below and to the right, and their sizes, int64 [B, 2]."""
    sizes_B2 = torch.tensor([image.shape[:2] for image in pixels])
    height, width = sizes_B2.amax(0).tolist()
    padded = [F.pad(image, (0, 0, 0, width - image.shape[1], 0, height - image.shape[0])) for image in pixels]
    return default_collate(padded), sizes_B2  # in a loader's worker: into memory that the consumer shares
