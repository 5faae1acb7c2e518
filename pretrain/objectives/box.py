"""Where is what the phrase names? (X-VLM, arXiv:2111.08276, section 3.2)

The phrase of one region of each image (attributes and label) is fused with the whole image, and the vector that stands
for the pair predicts the region's box. The loss is in `boxes`.
"""

from torch import Tensor

from pretrain.models.interface import ModelShape
from pretrain.objectives.boxes import box_loss
from pretrain.objectives.config import BoxConfig
from pretrain.objectives.objective import Objective, present, two_layers
from pretrain.objectives.views import Look, Views


class Box(Objective):
    """Owns two layers that end in centre, width and height as shares of the image."""

    reads = ("fused_phrase",)
    look = Look.PAIR

    def __init__(self, config: BoxConfig, shape: ModelShape) -> None:
        super().__init__()
        self.head = two_layers(shape.pooled_width, 4)

    def forward(self, views: Views) -> Tensor:
        predicted_B4 = self.head(views.fused_phrase.pooled_BD).sigmoid()
        box_B4 = present(views.batch.phrase_box_B4)
        return box_loss(predicted_B4, box_B4, box_B4[:, 2] > box_B4[:, 0])
