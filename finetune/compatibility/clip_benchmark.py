"""CLIP_benchmark (github.com/LAION-AI/CLIP_benchmark), zero-shot retrieval.

Features leave the encoders in half precision, as autocast gives them, and are normalised in single precision; ties fall
as `topk` leaves them. Our encoders run in single precision, so their embeddings are rounded to half here, once: what
autocast changes inside the encoders is not repeated.
"""

import numpy as np
import torch
import torch.nn.functional as F

from finetune.compatibility.material import Material, Printed, percent
from finetune.recall import Indices, Scores


def run(material: Material) -> Printed:
    """Figures of all captions."""
    assert material.embeddings is not None
    image_IE, text_TE = (F.normalize(torch.from_numpy(side).half().float(), dim=-1) for side in material.embeddings)
    scores_TI = (text_TE @ image_IE.T).numpy()
    t2i = _hits(scores_TI, np.arange(len(image_IE)), material.image_T)
    i2t = _hits(np.ascontiguousarray(scores_TI.T), material.image_T, np.arange(len(image_IE)))
    named = {"image_retrieval_recall": t2i, "text_retrieval_recall": i2t}
    lines = {f"{n}@{k}": v for n, values in named.items() for k, v in zip((1, 5, 10), values, strict=True)}
    return Printed(percent(i2t), percent(t2i), lines)


def _hits(scores_QG: Scores, owner_G: Indices, owner_Q: Indices) -> list[float]:
    """Share of the queries with an item of the same owner among the first 1, 5 and 10."""
    first_QK = torch.from_numpy(scores_QG).topk(min(10, scores_QG.shape[1]), dim=1).indices.numpy()
    right_QK = owner_G[first_QK] == owner_Q[:, None]
    return [float(right_QK[:, :k].any(1).mean()) for k in (1, 5, 10)]
