"""ALBEF (arXiv:2107.07651) and X-VLM (arXiv:2111.08276); BLIP (arXiv:2201.12086) and LAVIS add the cosine.

The best k of each query by cosine are scored by the logit of a match, all others stand at -100. Each rank fills its own
rows and the matrices are then summed over ranks: a row becomes its scores minus 100 for every other rank, in single
precision, which rounds scores together. Ties, those of all the others among them, fall as `argsort(...)[::-1]` leaves
them. The rank order of that sum is the communication library's; here the score is added last.
"""

import numpy as np
import torch

from finetune.compatibility.material import Material, Printed, means, percent_below, reversed_argsort_places
from finetune.recall import Indices, Scores

FILL = np.float32(-100.0)
RANKS = 8  # both papers' commands: one machine of eight GPUs


def run(material: Material) -> Printed:
    """As ALBEF and X-VLM: the logit alone."""
    return _run(material, add_similarity=False)


def run_blip(material: Material) -> Printed:
    """As BLIP and LAVIS: the logit plus the cosine."""
    return _run(material, add_similarity=True)


def summed_over_ranks(similarity_QG: Scores, candidates_Qk: Indices, scores_Qk: Scores, ranks: int = RANKS) -> Scores:
    """The matrix that the first rank sorts, float32 [Q, G]."""
    matrix_QG = np.full(similarity_QG.shape, FILL * np.float32(ranks), np.float32)
    np.put_along_axis(matrix_QG, candidates_Qk, FILL * np.float32(ranks - 1) + scores_Qk.astype(np.float32), axis=1)
    return matrix_QG


def _run(material: Material, add_similarity: bool) -> Printed:
    right_IT = np.arange(len(material.similarity_IT))[:, None] == material.image_T
    i2t = _direction(material, material.similarity_IT, right_IT, False, add_similarity)
    t2i = _direction(material, material.similarity_IT.T, right_IT.T, True, add_similarity)
    return Printed(i2t, t2i, means(i2t, t2i))


def _direction(
    material: Material, similarity_QG: Scores, right_QG: np.ndarray, by_text: bool, add_similarity: bool
) -> tuple[float, float, float]:
    queries, gallery = similarity_QG.shape
    best = torch.from_numpy(np.ascontiguousarray(similarity_QG)).topk(min(material.k, gallery), dim=1)
    candidates_Qk = best.indices.numpy()
    query_P = np.repeat(np.arange(queries), candidates_Qk.shape[1])
    pairs = (candidates_Qk.ravel(), query_P) if by_text else (query_P, candidates_Qk.ravel())
    assert material.logits is not None
    scores_Qk = material.logits(*pairs).reshape(candidates_Qk.shape)
    if add_similarity:
        scores_Qk = scores_Qk + best.values.numpy()
    return percent_below(reversed_argsort_places(summed_over_ranks(similarity_QG, candidates_Qk, scores_Qk), right_QG))
