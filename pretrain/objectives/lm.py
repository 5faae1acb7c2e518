"""Language modelling of the text given its image: captioning (BLIP, arXiv:2201.12086) and prefix LM (SimVLM,
arXiv:2108.10904).

Shapes: B pairs on this rank, L text tokens, M predicted tokens.
"""

from torch import Tensor

from pretrain.models.interface import ModelShape
from pretrain.models.packing import at
from pretrain.objectives.config import LMConfig
from pretrain.objectives.language import LanguageHead, word_loss
from pretrain.objectives.views import Views


class LM(LanguageHead):
    """Each token from what stands before it; under `prefix` only the tokens behind the prefix."""

    def __init__(self, config: LMConfig, shape: ModelShape) -> None:
        super().__init__(shape)
        self.config = config
        self.reads = (f"fused_{config.attention}",)

    def forward(self, views: Views) -> Tensor:
        [view] = self.reads
        batch = views.batch
        predicted_BL = batch.token_mask_BL.clone()
        predicted_BL[:, 0] = False  # nothing stands before it
        if self.config.attention == "prefix":
            predicted_BL &= ~views.prefix_BL
        features_MD = at(getattr(views, view).text_BLD[:, :-1], predicted_BL[:, 1:])
        logits_MV = self.logits(features_MD, views.model.word_embedding_VD)
        return word_loss(logits_MV, batch.token_ids_BL[predicted_BL], label_smoothing=self.config.label_smoothing)
