"""Regions that a detector found as image tokens (VisualBERT, LXMERT, ViLBERT, UNITER, OSCAR, ...).

Shapes: B images, K regions, F features, P numbers of a box, D width, N = K or K + 1 tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.models.blocks import initialize
from pretrain.models.config import Boxes, RegionConfig
from pretrain.models.interface import ImageInput
from pretrain.models.tokens import ImageTokens, masked_mean

SIZES: dict[Boxes, int] = {"box4": 4, "box5": 5, "box6": 6, "box7": 7, "sines": 2048}


def encode_boxes(boxes_BK4: Tensor, kind: Boxes) -> Tensor:
    """Corners as shares of width and height -> float [B, K, P].

    `box4`: the corners. `box5`: and the area (ViLBERT, arXiv:1908.02265). `box6`: the corners, width and height (OSCAR,
    arXiv:2004.06165). `box7`: and the area (UNITER, arXiv:1909.11740). `sines`: sines and cosines in 256 wave lengths
    of centre, width and height as percentages (VL-BERT, arXiv:1908.08530).
    """
    if kind == "sines":
        return _sines(boxes_BK4)
    size_BK2 = boxes_BK4[..., 2:] - boxes_BK4[..., :2]
    area_BK1 = size_BK2.prod(-1, keepdim=True)
    extra = {"box4": [], "box5": [area_BK1], "box6": [size_BK2], "box7": [size_BK2, area_BK1]}
    return torch.cat([boxes_BK4, *extra[kind]], -1)


class RegionEmbedder(nn.Module):
    """Features and boxes -> tokens; the regions that are hidden lose their features, not their boxes."""

    any_shape = False

    def __init__(self, config: RegionConfig) -> None:
        super().__init__()
        self.config, self.width, self.pooled_width = config, config.width, config.width
        self.prefix = int(config.whole_image or config.class_token)
        place = SIZES[config.box] + config.classes if config.box else 0
        joined = config.combine == "concatenate"
        self.feature = _layers(config.features + place * joined, config.width, config.layers)
        self.place = nn.Linear(place, config.width) if place and not joined else None
        parts = (1 if self.place is None else 2) if config.norm_parts else 0
        self.part_norms = nn.ModuleList(nn.LayerNorm(config.width, config.eps) for _ in range(parts))
        self.type_vector = nn.Parameter(torch.zeros(config.width)) if config.type_vector else None
        self.norm: nn.Module = nn.LayerNorm(config.width, config.eps) if config.norm else nn.Identity()
        self.relu = nn.ReLU() if config.relu else nn.Identity()
        self.drop = nn.Dropout(config.dropout)
        self.mask_vector = nn.Parameter(torch.zeros(config.features)) if config.hidden == "learned" else None
        self.class_token = nn.Parameter(torch.empty(1, 1, config.width)) if config.class_token else None
        initialize(self)
        if self.class_token is not None:
            nn.init.normal_(self.class_token, std=0.02)

    def share_norm(self, norm: nn.Module) -> None:
        """From now on the result goes through a LayerNorm that words have too."""
        self.norm = norm

    def forward(self, image: ImageInput) -> ImageTokens:
        """Tokens float [B, N, D]; the pooled vector is the first token, or the mean of the regions."""
        assert image.features_BKF is not None
        assert image.mask_BK is not None
        dtype = next(self.feature.parameters()).dtype
        features_BNF, mask_BN, place_BNP = image.features_BKF.to(dtype), image.mask_BK, self._places(image, dtype)
        seen_BK = mask_BN if image.hidden_BK is None else mask_BN & ~image.hidden_BK
        mean_BF = masked_mean(features_BNF, seen_BK)
        features_BNF = self._hide(features_BNF, image.hidden_BK)
        if self.config.whole_image:
            features_BNF = torch.cat([mean_BF[:, None], features_BNF], 1)
            mask_BN = F.pad(mask_BN, (1, 0), value=True)
            place_BNP = None if place_BNP is None else torch.cat([self._whole(place_BNP), place_BNP], 1)
        tokens_BND = self.norm(self._combine(features_BNF, place_BNP))
        if self.class_token is not None:
            tokens_BND = torch.cat([self.class_token.expand(len(tokens_BND), -1, -1), tokens_BND], 1)
            mask_BN = F.pad(mask_BN, (1, 0), value=True)
        return ImageTokens.pooled_by(self.drop(tokens_BND), mask_BN, "first" if self.prefix else "mean")

    def example(self) -> ImageInput:
        """One region of one image, for a look at shapes."""
        there = torch.ones(1, 1, dtype=torch.bool)
        classes = torch.zeros(1, 1, self.config.classes) if self.config.classes else None
        features = torch.zeros(1, 1, self.config.features)
        return ImageInput(None, features, torch.zeros(1, 1, 4), there, None, classes)

    def _hide(self, features_BKF: Tensor, hidden_BK: Tensor | None) -> Tensor:
        if hidden_BK is None:
            return features_BKF
        instead = features_BKF.new_zeros(()) if self.mask_vector is None else self.mask_vector
        return torch.where(hidden_BK[..., None], instead, features_BKF)

    def _places(self, image: ImageInput, dtype: torch.dtype) -> Tensor | None:
        if self.config.box is None:
            return None
        assert image.boxes_BK4 is not None
        boxes_BKP = encode_boxes(image.boxes_BK4.to(dtype), self.config.box)
        if not self.config.classes:
            return boxes_BKP
        assert image.probabilities_BKC is not None
        return torch.cat([boxes_BKP, image.probabilities_BKC.to(dtype)], -1)

    def _whole(self, place_BKP: Tensor) -> Tensor:
        """The place of the whole image, float [B, 1, P]; the detector's distribution says nothing of it."""
        assert self.config.box is not None
        corners_114 = place_BKP.new_tensor([[[0.0, 0.0, 1.0, 1.0]]])
        whole_11P = F.pad(encode_boxes(corners_114, self.config.box), (0, self.config.classes))
        return whole_11P.expand(len(place_BKP), -1, -1)

    def _combine(self, features_BNF: Tensor, place_BNP: Tensor | None) -> Tensor:
        if self.config.combine == "concatenate" and place_BNP is not None:
            return self._finish(self.feature(torch.cat([features_BNF, place_BNP], -1)))
        parts = [self.feature(features_BNF)]
        if self.place is not None:
            parts.append(self.place(place_BNP))
        if self.part_norms:
            parts = [norm(part) for norm, part in zip(self.part_norms, parts, strict=True)]
        total_BND = torch.stack(parts).sum(0)
        return self._finish(total_BND / len(parts) if self.config.combine == "mean" else total_BND)

    def _finish(self, tokens_BND: Tensor) -> Tensor:
        tokens_BND = self.relu(tokens_BND)
        return tokens_BND if self.type_vector is None else tokens_BND + self.type_vector


def _sines(boxes_BK4: Tensor) -> Tensor:
    low_BK2, high_BK2 = boxes_BK4[..., :2], boxes_BK4[..., 2:]
    percent_BK41 = 100 * torch.cat([(low_BK2 + high_BK2) / 2, high_BK2 - low_BK2], -1).unsqueeze(-1)
    length_W = 1000 ** (torch.arange(256, device=boxes_BK4.device, dtype=boxes_BK4.dtype) / 256)
    angle_BK4W = percent_BK41 / length_W
    return torch.cat([angle_BK4W.sin(), angle_BK4W.cos()], -1).flatten(2)


def _layers(features: int, width: int, layers: int) -> nn.Module:
    if layers == 1:
        return nn.Linear(features, width)
    return nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, width), nn.ReLU())
