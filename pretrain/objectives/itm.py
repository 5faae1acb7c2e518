"""Image-text matching: is this text of this image? (ViLBERT, arXiv:1908.02265; ALBEF, arXiv:2107.07651)

Each pair meets one wrong text and one wrong image, drawn with the probability that contrast gives them (mostly hard
ones) or evenly, never from its own group; or half of the pairs have their text swapped. Or the true pair is to be
chosen among several (`pretrain.objectives.alternatives`). Texts that are polluted when the batch is made are judged by
`pretrain.objectives.pollution`.

Shapes: B pairs on this rank, G pairs of all ranks, R judged rows, C classes.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.batch import Draw
from pretrain.distributed import gather, global_mean, world
from pretrain.models.interface import Encoded, Fused, Memory, ModelShape
from pretrain.objectives.alternatives import ranking_loss, score_alternatives
from pretrain.objectives.config import ITMConfig
from pretrain.objectives.negatives import draw_negatives, gather_encoded
from pretrain.objectives.objective import Objective, present, two_layers
from pretrain.objectives.views import Look, Views
from pretrain.precision import full, in_full_precision
from shards.errors import UserError

TEMPERATURE = 0.07  # of the draw, not of the loss


@in_full_precision
def matching_loss(logits_RC: Tensor, class_R: Tensor, valid_R: Tensor) -> Tensor:
    """Cross-entropy over the valid rows of all ranks.

    Args:
        logits_RC: float [R, C]; of two classes, column 1 is for a match.
        class_R: bool or int64 [R].
        valid_R: bool [R], rows that count.
    """
    return global_mean(F.cross_entropy(logits_RC, class_R.long(), reduction="none"), valid_R)


class ITM(Objective):
    """Owns the two-way head on the vector that stands for the pair."""

    look = Look.PAIR

    def __init__(self, config: ITMConfig, shape: ModelShape) -> None:
        super().__init__()
        self.config, ranking = config, config.ranking
        self.judges = ranking is None or ranking.binary > 0
        if self.judges and config.negatives == "hard" and shape.embedding_dim is None:
            raise UserError(
                "`objectives.itm.negatives` (=hard) are drawn by similarity, so `model.embedding_dim` must not be null"
            )
        swaps = self.judges and config.negatives == "swap"
        self.reads = (*(("fused_swapped",) if swaps else ()), *(("text", "image") if ranking or not swaps else ()))
        if config.regions:
            self.reads = (*self.reads, "phrase", "region")
        self.head = nn.Linear(shape.pooled_width, 2) if config.head == "linear" else two_layers(shape.pooled_width, 2)

    def score(self, fused: Fused) -> Tensor:
        """Log-odds of a match, float [B]; of a head that was trained to rank, its row for a match."""
        logits_B2 = self.head(fused.pooled_BD)
        return logits_B2[:, 1] if self.config.ranking else logits_B2[:, 1] - logits_B2[:, 0]

    def match_logit(self, fused: Fused) -> Tensor:
        """The logit of a match alone, float [B]: what published evaluators rank by."""
        return self.head(fused.pooled_BD)[:, 1]

    def forward(self, views: Views) -> Tensor:
        ranking = self.config.ranking
        if ranking is None:
            return self._yes_or_no(views)
        loss = ranking_loss(*score_alternatives(views, self.match_logit, ranking), ranking)
        return loss + ranking.binary * self._yes_or_no(views) if self.judges else loss

    def _yes_or_no(self, views: Views) -> Tensor:
        if self.config.negatives == "swap":
            match_B = views.swap.match_B
            return matching_loss(self.head(views.fused_swapped.pooled_BD), match_B, torch.ones_like(match_B))
        loss = self._against_negatives(views, views.text, views.image, views.memory, views.batch.group_B)
        if not self.config.regions:
            return loss
        group_B = present(views.batch.phrase_group_B)
        of_regions = self._against_negatives(views, views.phrase, views.region, views.region_memory, group_B)
        return loss + self.config.regions * of_regions

    def _against_negatives(self, views: Views, text: Encoded, image: Encoded, right: Memory, group_B: Tensor) -> Tensor:
        """Each text with its image (`right`: the images as the trunk remembers them), and both with a wrong partner."""
        draws_BK = views.batch.draws_BK
        every = self.config.pool == "global"
        texts, images = (gather_encoded(text), gather_encoded(image)) if every else (text, image)
        allowed_BG = group_B[:, None] != (gather(group_B) if every else group_B)
        wrong_text = texts.rows(self._draw(image, texts, allowed_BG, draws_BK[:, Draw.WRONG_TEXT]))
        wrong_image_B = self._draw(text, images, allowed_BG, draws_BK[:, Draw.WRONG_IMAGE])
        own = not every or world() == 1  # images of this rank are remembered already
        wrong = right.rows(wrong_image_B) if own else views.model.remember(images.rows(wrong_image_B))
        judged = Encoded.concatenate([text, wrong_text, text])
        judged = replace(judged, read_BT=torch.zeros_like(judged.mask_BT))
        fused = views.model.fuse(judged, Memory.concatenate([right, right, wrong]))
        match_R = torch.arange(3 * len(group_B), device=group_B.device) < len(group_B)
        return matching_loss(self.head(fused.pooled_BD), match_R, match_R | allowed_BG.any(1).repeat(3))

    @torch.no_grad()
    def _draw(self, queries: Encoded, gallery: Encoded, allowed_BG: Tensor, draw_B: Tensor) -> Tensor:
        if self.config.negatives == "random":
            similarity_BG = torch.zeros(allowed_BG.shape, device=allowed_BG.device)
        else:
            similarity_BG = full(queries.embedding_BE) @ full(gallery.embedding_BE).T / TEMPERATURE
        return draw_negatives(similarity_BG, allowed_BG, draw_B)
