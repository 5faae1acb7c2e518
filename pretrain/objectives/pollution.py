"""Was the text polluted with another image's? (OSCAR, arXiv:2004.06165; VinVL, arXiv:2101.00529; VisualBERT)

Which texts are polluted, and how, is decided when the batch is made (`pretrain.data.pollution`).
"""

from torch import Tensor, nn

from pretrain.models.interface import Fused, ModelShape
from pretrain.objectives.config import PollutionConfig
from pretrain.objectives.itm import matching_loss
from pretrain.objectives.objective import Objective
from pretrain.objectives.views import Look, Views


class Pollution(Objective):
    """Owns a head on the vector that stands for the pair: class 0 is clean."""

    look = Look.PAIR

    def __init__(self, config: PollutionConfig, shape: ModelShape) -> None:
        super().__init__()
        self.config = config
        self.reads = (f"fused_{'masked_text' if config.text == 'masked' else 'clean'}",)
        self.head = nn.Linear(shape.pooled_width, config.classes)

    def score(self, fused: Fused) -> Tensor:
        """Log-odds that the text is the image's own, float [B]."""
        logits_BC = self.head(fused.pooled_BD)
        return logits_BC[:, 0] - logits_BC[:, 1:].logsumexp(1)

    def match_logit(self, fused: Fused) -> Tensor:
        """The logit of class 0 alone, float [B]."""
        return self.head(fused.pooled_BD)[:, 0]

    def forward(self, views: Views) -> Tensor:
        pollution_B = views.batch.pollution_B
        assert pollution_B is not None, "the batch was made without pollution"
        [view] = self.reads
        return matching_loss(self.head(getattr(views, view).pooled_BD), pollution_B, pollution_B >= 0)
