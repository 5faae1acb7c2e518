"""The true pair against several false ones, as published retrieval heads are fine-tuned.

    softmax   cross-entropy over all alternatives               (ViLT, METER: 16-way; ViLBERT: 4-way)
    margin    mean of max(0, margin + s_false - s_true)          (UNITER, s = sigmoid(score), margin 0.2)
    circle    softplus(logsumexp of both sides)                  (ERNIE-ViL and UNIMO; arXiv:2002.10857, eq. 6, 9)

Shapes: B rows on this rank, G pairs of all ranks, K drawn ones, M false pairs of a row, A = 1 + M alternatives, of
which column 0 is the true pair.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.batch import Draw
from pretrain.distributed import gather, global_mean
from pretrain.models.interface import Encoded, Fused, Memory
from pretrain.objectives.config import RankingConfig
from pretrain.objectives.negatives import draw_several, gather_encoded
from pretrain.objectives.views import Views
from pretrain.precision import full, in_full_precision

Judge = Callable[[Fused], Tensor]
TEMPERATURE = 0.07  # of the draw among images that look alike


def ranking_loss(score_BA: Tensor, valid_BM: Tensor, config: RankingConfig) -> Tensor:
    """This rank's part of the loss that `config` names, averaged over the rows of all ranks.

    Args:
        score_BA: float [B, A], the score of each pair; column 0 is the true one.
        valid_BM: bool [B, M], false pairs that count; a row without any does not count.
    """
    match config.loss:
        case "softmax":
            return softmax_ranking(score_BA, valid_BM)
        case "margin":
            return margin_ranking(score_BA, valid_BM, config.margin)
        case "circle":
            return circle_ranking(score_BA, valid_BM, config.margin, config.scale)


@in_full_precision
def softmax_ranking(score_BA: Tensor, valid_BM: Tensor) -> Tensor:
    """Cross-entropy of choosing the true pair."""
    false_BM = score_BA[:, 1:].masked_fill(~valid_BM, -torch.inf)
    logits_BA = torch.cat([score_BA[:, :1], false_BM], 1)
    return global_mean(-logits_BA.log_softmax(1)[:, 0], valid_BM.any(1))


@in_full_precision
def margin_ranking(score_BA: Tensor, valid_BM: Tensor, margin: float) -> Tensor:
    """By how much the probability of each false pair comes closer to the true one's than `margin`."""
    probability_BA = score_BA.sigmoid()
    short_BM = F.relu(margin + probability_BA[:, 1:] - probability_BA[:, :1])
    return global_mean(short_BM.flatten(), valid_BM.flatten())


@in_full_precision
def circle_ranking(score_BA: Tensor, valid_BM: Tensor, margin: float, scale: float) -> Tensor:
    """The circle loss of probabilities; its weights carry no gradient."""
    probability_BA = score_BA.sigmoid()
    true_B, false_BM = probability_BA[:, 0], probability_BA[:, 1:]
    weight_B, weight_BM = F.relu(1 + margin - true_B).detach(), F.relu(false_BM + margin).detach()
    logit_B = -scale * weight_B * (true_B - (1 - margin))
    logit_BM = (scale * weight_BM * (false_BM - margin)).masked_fill(~valid_BM, torch.finfo(score_BA.dtype).min)
    return global_mean(F.softplus(logit_B + logit_BM.logsumexp(1)), valid_BM.any(1))


def score_alternatives(views: Views, judge: Judge, config: RankingConfig) -> tuple[Tensor, Tensor]:
    """Draws the false pairs and scores all: float [B, A] and which false ones count, bool [B, M]."""
    false = list(FalsePairs(views, judge, config))
    texts, memories, valid = zip(*false, strict=True)
    everything = _as_pairs(Encoded.concatenate([views.text, *texts]))
    scores_R = judge(views.model.fuse(everything, Memory.concatenate([views.memory, *memories])))
    own_B, false_R = scores_R[: len(views.batch)], scores_R[len(views.batch) :]
    # Each kind came as K rows of B; rows of a pair stand under each other.
    return torch.cat([own_B[:, None], false_R.view(-1, len(own_B)).T], 1), torch.cat(valid, 1)


def _as_pairs(text: Encoded) -> Encoded:
    """Of which nothing but the vector of the pair will be read."""
    return replace(text, read_BT=torch.zeros_like(text.mask_BT))


class FalsePairs:
    """What each pair of a rank is compared with, by kinds: texts and memories of K x B rows, and which count."""

    def __init__(self, views: Views, judge: Judge, config: RankingConfig) -> None:
        self._views, self._judge, self._config = views, judge, config
        self._texts, self._images = gather_encoded(views.text), gather_encoded(views.image)
        self._allowed_BG = views.batch.group_B[:, None] != gather(views.batch.group_B)

    def __iter__(self) -> Iterator[tuple[Encoded, Memory, Tensor]]:
        config, even_BG = self._config, torch.zeros(self._allowed_BG.shape, device=self._allowed_BG.device)
        if config.texts:
            yield self._kind(config.texts, even_BG, Draw.WRONG_TEXT, self._with_texts, mined=True)
        if config.images:
            yield self._kind(config.images, even_BG, Draw.WRONG_IMAGE, self._with_images, mined=True)
        if config.similar:
            yield self._kind(config.similar, self._likeness(), Draw.SWAP, self._with_texts, mined=False)

    def _kind(
        self,
        count: int,
        logits_BG: Tensor,
        draw: Draw,
        pair: Callable[[Tensor], tuple[Encoded, Memory]],
        mined: bool,
    ) -> tuple[Encoded, Memory, Tensor]:
        pool = self._config.mined_from if mined else None
        draw_B = self._views.batch.draws_BK[:, draw]
        index_BK, valid_BK = draw_several(logits_BG, self._allowed_BG, draw_B, pool or count)
        if pool:
            hardest_BK = self._hardness(index_BK, valid_BK, pair).topk(min(count, index_BK.shape[1]), 1).indices
            index_BK, valid_BK = index_BK.gather(1, hardest_BK), valid_BK.gather(1, hardest_BK)
        return *pair(index_BK.T.flatten()), valid_BK

    @torch.no_grad()
    def _hardness(self, index_BK: Tensor, valid_BK: Tensor, pair: Callable[[Tensor], tuple[Encoded, Memory]]) -> Tensor:
        """The score of each candidate, float [B, K]; those that do not count come last."""
        columns = []
        for index_B in index_BK.T:
            text, memory = pair(index_B)
            columns.append(self._judge(self._views.model.fuse(_as_pairs(text), memory)))
        return torch.stack(columns, 1).masked_fill(~valid_BK, -torch.inf)

    def _with_texts(self, index_R: Tensor) -> tuple[Encoded, Memory]:
        """K x B texts, each B of them with this rank's images."""
        own_R = torch.arange(len(index_R), device=index_R.device) % len(self._views.batch)
        return self._texts.rows(index_R), self._views.memory.rows(own_R)

    def _with_images(self, index_R: Tensor) -> tuple[Encoded, Memory]:
        """K x B images, each B of them with this rank's texts; an image that was drawn twice is remembered once."""
        own_R = torch.arange(len(index_R), device=index_R.device) % len(self._views.batch)
        needed, place_R = index_R.unique(return_inverse=True)
        return self._views.text.rows(own_R), self._views.model.remember(self._images.rows(needed)).rows(place_R)

    @torch.no_grad()
    def _likeness(self) -> Tensor:
        """Cosine of the mean image tokens, over a temperature, float [B, G]."""
        image = self._views.image
        mask_BN1 = image.mask_BT[..., None]
        mean_BD = (full(image.tokens_BTD) * mask_BN1).sum(1) / mask_BN1.sum(1)
        unit_BD = F.normalize(mean_BD, dim=-1)
        return unit_BD @ gather(unit_BD).T / TEMPERATURE
