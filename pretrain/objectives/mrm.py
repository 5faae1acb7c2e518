"""Masked region modelling: what was in the regions that the model could not see. The losses are in `regions`.

Features (UNITER, arXiv:1909.11740), class as a label or a distribution (LXMERT, arXiv:1908.07490; ViLBERT,
arXiv:1908.02265) and attributes (LXMERT). Which regions are hidden is decided with the data.

Shapes: B pairs on this rank, K regions, M hidden regions, D width, F region features.
"""

from torch import Tensor, nn

from pretrain.models.interface import ModelShape
from pretrain.models.packing import at
from pretrain.objectives.config import MRAConfig, MRCConfig, MRFConfig
from pretrain.objectives.objective import Objective, present
from pretrain.objectives.regions import attribute_loss, distribution_loss, feature_regression, label_loss
from pretrain.objectives.views import Views
from shards.errors import UserError


class RegionHead(Objective):
    """Two layers on the fused features of hidden regions.

    Args:
        text: Whether words are hidden too.
        outputs: Numbers that are predicted of a region.
    """

    def __init__(self, text: str, shape: ModelShape, outputs: int) -> None:
        super().__init__()
        self.reads = ("fused_masked_both" if text == "masked" else "fused_masked_image",)
        width, self.prefix = shape.image_width, shape.image_prefix
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, shape.eps))
        self.output = nn.Linear(width, outputs)

    def predictions(self, views: Views) -> Tensor:
        """float [M, outputs]."""
        [view] = self.reads
        image_BND = present(getattr(views, view).image_BND)
        return self.output(self.transform(at(image_BND[:, self.prefix :], hidden(views))))


class MRF(RegionHead):
    """Regression of the features themselves."""

    def __init__(self, config: MRFConfig, shape: ModelShape) -> None:
        if shape.region_dim is None:
            raise UserError("`objectives.mrf` predicts region features, so `model.vision.region` must be set")
        super().__init__(config.text, shape, shape.region_dim)
        self.config = config

    def forward(self, views: Views) -> Tensor:
        target_MF = present(views.batch.region_features_BKF)[hidden(views)]
        return feature_regression(self.predictions(views), target_MF, kind=self.config.error)


class MRC(RegionHead):
    """The detector's class."""

    def __init__(self, config: MRCConfig, shape: ModelShape) -> None:
        super().__init__(config.text, shape, config.classes)
        self.config = config

    def forward(self, views: Views) -> Tensor:
        logits_MC = self.predictions(views)
        if self.config.target == "label":
            return label_loss(logits_MC, present(views.batch.region_labels_BK)[hidden(views)])
        return distribution_loss(logits_MC, present(views.batch.region_probabilities_BKC)[hidden(views)])


class MRA(RegionHead):
    """The attributes that the detector names."""

    def __init__(self, config: MRAConfig, shape: ModelShape) -> None:
        super().__init__(config.text, shape, config.classes)

    def forward(self, views: Views) -> Tensor:
        attributes_MA = present(views.batch.region_attributes_BKA)[hidden(views)]
        return attribute_loss(self.predictions(views), attributes_MA)


def hidden(views: Views) -> Tensor:
    """bool [B, K]."""
    return present(views.batch.masked_regions_BK)
