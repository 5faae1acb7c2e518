"""Image-text matching: is this text of this image? (ALBEF, arXiv:2107.07651)

Each pair meets one wrong text and one wrong image from the global batch, drawn with the probability that contrast gives
them: mostly hard ones, never from its own group. Left out: three-way and two-caption variants.

Shapes: B pairs on this rank, G pairs of all ranks, L text tokens, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.batch import Draw
from pretrain.distributed import gather, max_over_ranks, sum_over_ranks, world
from pretrain.models.interface import Encoded, Fused, Memory, ModelShape
from pretrain.objectives.config import ITMConfig
from pretrain.objectives.views import Views
from pretrain.precision import full

TEMPERATURE = 0.07  # of the draw, not of the loss


def draw_negatives(similarity_BG: Tensor, allowed_BG: Tensor, draw_B: Tensor) -> Tensor:
    """Draws one column per row with probability softmax(similarity), among the allowed ones.

    Args:
        similarity_BG: float [B, G] logits.
        allowed_BG: bool [B, G].
        draw_B: float64 [B], uniform in [0, 1): the whole randomness, so that the draw does not depend on the rank.

    Returns:
        int64 [B]; any column where a row allows none (mask those rows with `allowed_BG.any(1)`).
    """
    probability_BG = similarity_BG.double().masked_fill(~allowed_BG, -torch.inf).softmax(1).nan_to_num()
    cumulative_BG = probability_BG.cumsum(1)
    drawn_B = torch.searchsorted(cumulative_BG, (draw_B * cumulative_BG[:, -1])[:, None], right=True)[:, 0]
    return drawn_B.clamp(max=similarity_BG.shape[1] - 1)


def matching_loss(logits_R2: Tensor, match_R: Tensor, valid_R: Tensor) -> Tensor:
    """Two-way cross-entropy over the valid rows of all ranks; the mean over ranks of the result is the loss.

    Args:
        logits_R2: float [R, 2], column 1 for a match.
        match_R: bool [R].
        valid_R: bool [R], rows that count.
    """
    per_row_R = F.cross_entropy(full(logits_R2), match_R.long(), reduction="none")
    count = sum_over_ranks(valid_R.sum())
    return world() * (per_row_R * valid_R).sum() / count.clamp(min=1)


class ITM(nn.Module):
    """Owns the two-way head on the fused first token."""

    reads = ("text", "image")

    def __init__(self, config: ITMConfig, shape: ModelShape) -> None:
        super().__init__()
        self.config = config
        self.head = nn.Linear(shape.pooled_width, 2)

    def score(self, fused: Fused) -> Tensor:
        """Log-odds of a match, float [B]."""
        logits_B2 = self.head(fused.pooled_BD)
        return logits_B2[:, 1] - logits_B2[:, 0]

    def match_logit(self, fused: Fused) -> Tensor:
        """The logit of a match alone, float [B]: what published evaluators rank by."""
        return self.head(fused.pooled_BD)[:, 1]

    def forward(self, views: Views) -> Tensor:
        text, image, draws_BK = views.text, views.image, views.batch.draws_BK
        all_texts, all_images = gather_encoded(text), gather_encoded(image)
        allowed_BG = views.batch.group_B[:, None] != gather(views.batch.group_B)[None, :]
        wrong_text = all_texts.rows(self._draw(image, all_texts, allowed_BG, draws_BK[:, Draw.WRONG_TEXT]))
        wrong_image = all_images.rows(self._draw(text, all_images, allowed_BG, draws_BK[:, Draw.WRONG_IMAGE]))
        right = views.memory
        memory = Memory.concatenate([right, right, views.model.remember(wrong_image)])
        fused = views.model.fuse(Encoded.concatenate([text, wrong_text, text]), memory)
        rows = len(views.batch)
        match_R = torch.arange(3 * rows, device=fused.pooled_BD.device) < rows
        return matching_loss(self.head(fused.pooled_BD), match_R, match_R | allowed_BG.any(1).repeat(3))

    @torch.no_grad()
    def _draw(self, queries: Encoded, gallery: Encoded, allowed_BG: Tensor, draw_B: Tensor) -> Tensor:
        similarity_BG = full(queries.embedding_BE) @ full(gallery.embedding_BE).T / TEMPERATURE
        if self.config.negatives == "random":
            similarity_BG = torch.zeros_like(similarity_BG)
        return draw_negatives(similarity_BG, allowed_BG, draw_B)


def gather_encoded(local: Encoded) -> Encoded:
    """All ranks' items, padded to the longest; with gradients."""
    local = local.padded(max_over_ranks(local.mask_BT.shape[1]))
    return Encoded(gather(local.tokens_BTD), gather(local.mask_BT), gather(local.embedding_BE))
