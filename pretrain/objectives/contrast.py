"""Contrast of images with texts: the softmax of CLIP, the sigmoid of SigLIP, and the targets that they take.

    target = (1 - alpha) * hard + alpha * softmax(teacher)        hard: uniform over the columns of a row's group

A gallery is the pairs of all ranks, with features of a queue behind them where there is one. Papers: CLIP
(arXiv:2103.00020), SigLIP (arXiv:2303.15343), soft targets of a teacher (ALBEF, arXiv:2107.07651, eq. 6), label
smoothing (ALIGN, arXiv:2102.05918).

Shapes: B pairs on this rank, G columns of the gallery, E embedding size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pretrain.distributed import gather, global_mean
from pretrain.precision import in_full_precision

COLUMNS = 4096  # of the sigmoid's logits that are held at a time


def group_targets(
    group_B: Tensor, group_G: Tensor, label_smoothing: float = 0.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Each row's target: uniform over the columns of its own group.

    Args:
        group_B: int64 [B], not negative.
        group_G: int64 [G]; a column of a negative group is empty and gets nothing.
        label_smoothing: Share of the target that is spread over all columns that are not empty.

    Returns:
        float [B, G] of `dtype`, rows that sum to 1.
    """
    same_BG = (group_B[:, None] == group_G[None, :]).to(dtype)
    filled_G = (group_G >= 0).to(dtype)
    hard_BG = same_BG / same_BG.sum(1, keepdim=True)
    return (1 - label_smoothing) * hard_BG + label_smoothing * filled_G / filled_G.sum()


@in_full_precision
def scaled_similarity(rows_BE: Tensor, gallery_GE: Tensor, group_G: Tensor, temperature: Tensor) -> Tensor:
    """Logits of each row over a gallery, float [B, G]; -inf for its empty columns, those of a negative group."""
    return (rows_BE @ gallery_GE.T / temperature).masked_fill(group_G < 0, -torch.inf)


@in_full_precision
def soften(target_BG: Tensor, teacher_BG: Tensor, alpha: Tensor) -> Tensor:
    """Mixes the teacher's opinion into a target; `teacher_BG` are its logits, `alpha` float [1] its share."""
    return (1 - alpha) * target_BG + alpha * teacher_BG.detach().softmax(1)


@in_full_precision
def softmax_contrast(logits_BG: Tensor, target_BG: Tensor) -> Tensor:
    """Cross-entropy of each row over its gallery, averaged over the rows of all ranks.

    Args:
        logits_BG: float [B, G], similarities divided by the temperature; -inf for columns that are empty.
        target_BG: float [B, G], rows that sum to 1 and are 0 at empty columns.

    Returns:
        This rank's part, by the convention of `pretrain.distributed`.
    """
    log_BG = logits_BG.log_softmax(1)
    return global_mean(-(target_BG * log_BG.masked_fill(log_BG == -torch.inf, 0)).sum(1))


@in_full_precision
def contrastive_loss(
    image_BE: Tensor, text_BE: Tensor, group_B: Tensor, temperature: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """CLIP's loss: the mean of both directions over the global batch.

    Args:
        image_BE, text_BE: float [B, E], L2-normalised.
        group_B: int64 [B]; a row's target is uniform over all columns of its own group.
        temperature: float [1].
        label_smoothing: Share of the target that is spread over all columns (ALIGN uses 0.1).
    """
    target_BG = group_targets(group_B, gather(group_B), label_smoothing, image_BE.dtype)
    image_to_text = softmax_contrast(image_BE @ gather(text_BE).T / temperature, target_BG)
    text_to_image = softmax_contrast(text_BE @ gather(image_BE).T / temperature, target_BG)
    return (image_to_text + text_to_image) / 2


@in_full_precision
def sigmoid_contrast(image_BE: Tensor, text_BE: Tensor, group_B: Tensor, temperature: Tensor, bias: Tensor) -> Tensor:
    """Every image with every text as a two-way decision of its own (SigLIP, algorithm 1).

    The sum over all pairs of the global batch divided by the number of its rows. Only `COLUMNS` columns of logits
    are held at a time; the backward makes them again.

    Args:
        image_BE, text_BE: float [B, E], L2-normalised.
        group_B: int64 [B]; pairs of one group are positives.
        temperature, bias: float [1]; a logit is `similarity / temperature + bias`.
    """
    sums_B = torch.zeros(len(image_BE), device=image_BE.device, dtype=image_BE.dtype)
    galleries = zip(gather(text_BE).split(COLUMNS), gather(group_B).split(COLUMNS), strict=True)
    for text_CE, group_C in galleries:
        columns = (image_BE, text_CE, group_B[:, None] == group_C, temperature, bias)
        sums_B = sums_B + checkpoint(_sigmoid_rows, *columns, use_reentrant=False, preserve_rng_state=False)
    return global_mean(sums_B)


def _sigmoid_rows(image_BE: Tensor, text_CE: Tensor, same_BC: Tensor, temperature: Tensor, bias: Tensor) -> Tensor:
    logits_BC = image_BE @ text_CE.T / temperature + bias
    return -F.logsigmoid(torch.where(same_BC, logits_BC, -logits_BC)).sum(1)
