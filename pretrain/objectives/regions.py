"""What masked region modelling asks of a hidden region: its features, its class, its attributes.

Feature regression (UNITER, arXiv:1909.11740, section 3.2; smooth L1 in LXMERT, arXiv:1908.07490), hard class and
attributes (LXMERT), divergence from the detector's distribution (ViLBERT, arXiv:1908.02265; UNITER). Every mean is over
the hidden regions of all ranks.

Shapes: M hidden regions of this rank, F region features, C classes, A attributes of a region.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from pretrain.data.labels import UNKNOWN
from pretrain.distributed import global_mean
from pretrain.precision import in_full_precision


@in_full_precision
def feature_regression(predicted_MF: Tensor, target_MF: Tensor, kind: Literal["l2", "smooth_l1"] = "l2") -> Tensor:
    """Mean squared (`l2`) or smooth absolute error over features and regions."""
    error = F.mse_loss if kind == "l2" else F.smooth_l1_loss
    return global_mean(error(predicted_MF, target_MF, reduction="none"))


@in_full_precision
def label_loss(logits_MC: Tensor, label_M: Tensor) -> Tensor:
    """Cross-entropy of the rows whose label is known; int64 [M], `UNKNOWN` elsewhere."""
    return global_mean(F.cross_entropy(logits_MC, label_M, ignore_index=UNKNOWN, reduction="none"), label_M != UNKNOWN)


@in_full_precision
def attribute_loss(logits_MC: Tensor, attribute_MA: Tensor) -> Tensor:
    """Cross-entropy of a row with each of its attributes, averaged over them; rows without one do not count."""
    known_MA = attribute_MA != UNKNOWN
    log_MA = logits_MC.log_softmax(1).gather(1, attribute_MA.clamp(min=0))
    return global_mean(-(log_MA * known_MA).sum(1) / known_MA.sum(1).clamp(min=1), known_MA.any(1))


@in_full_precision
def distribution_loss(logits_MC: Tensor, probability_MC: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the prediction from the detector's distribution, summed over classes."""
    return global_mean(F.kl_div(logits_MC.log_softmax(1), probability_MC, reduction="none").sum(1))
