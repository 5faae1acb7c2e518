"""UNITER (arXiv:1909.11740) and VILLA (arXiv:2006.06195).

Every pair is scored and kept in half precision; ties fall as `topk` leaves them. Text to image counts the entries of
`nonzero()` below K, and those hold the number of the query beside its place: the queries 0 to K - 1 count once more if
they have any place among the first ten.
"""

import numpy as np
import torch
from torch import Tensor

from finetune.compatibility.material import Material, Printed, means, percent

MOST = 10


def run(material: Material) -> Printed:
    """Figures of all captions."""
    scores_TI = torch.from_numpy(np.ascontiguousarray(material.every_pair().T)).half()
    image_T = torch.from_numpy(material.image_T)
    found_TK = scores_TI.topk(min(MOST, scores_TI.shape[1]), dim=1).indices == image_T[:, None]
    found_KI = image_T[scores_TI.topk(min(MOST, len(scores_TI)), dim=0).indices] == torch.arange(scores_TI.shape[1])
    t2i = [_with_row_numbers(found_TK, k) for k in (1, 5, 10)]
    i2t = [float(found_KI[:k].any(0).double().mean()) for k in (1, 5, 10)]
    return Printed(percent(i2t), percent(t2i), means(i2t, t2i))


def _with_row_numbers(found_TK: Tensor, k: int) -> float:
    query, place = found_TK.nonzero().unbind(1)
    return int((query < k).sum() + (place < k).sum()) / len(found_TK)
