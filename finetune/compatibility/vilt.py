"""ViLT (arXiv:2102.03334), and METER (arXiv:2111.02387) after it.

Captions that an image repeats are dropped. Every pair is scored under autocast, so in half precision. The sampler gives
every rank equally many images: where they do not divide, the first ones stand twice in the gallery and ask twice. Ties
fall as `topk` leaves them. It also validates on the test split; that cannot be seen in the figures.
"""

import numpy as np
import torch

from finetune.compatibility.material import Material, Printed, percent

RANKS = 8  # GPUs of one machine in its commands


def run(material: Material) -> Printed:
    """Figures of the captions without repeats."""
    texts = distinct(material)
    images = padded_order(len(material.similarity_IT), RANKS)
    scores = torch.from_numpy(material.every_pair()[np.ix_(images, texts)]).half().float()
    iids, tiids = torch.from_numpy(images), torch.from_numpy(material.image_T[texts])
    i2t, t2i = [], []
    for k in (1, 5, 10):
        texts_IK = scores.topk(min(k, scores.shape[1]), dim=1).indices
        i2t.append(float((tiids[texts_IK] == iids[:, None]).any(1).double().mean()))
        images_KT = scores.topk(min(k, len(scores)), dim=0).indices
        t2i.append(float((iids[images_KT] == tiids).any(0).double().mean()))
    names = [f"{side}_r{k}" for side in ("ir", "tr") for k in (1, 5, 10)]
    return Printed(percent(i2t), percent(t2i), dict(zip(names, [*t2i, *i2t], strict=True)))


def distinct(material: Material) -> np.ndarray:
    """Places of the texts without those that their image has already, int64."""
    seen: dict[tuple[int, str], int] = {}
    for place, (image, text) in enumerate(zip(material.image_T.tolist(), material.texts, strict=True)):
        seen.setdefault((image, text), place)
    return np.array(list(seen.values()), np.int64)


def padded_order(images: int, ranks: int) -> np.ndarray:
    """The gallery as gathered from the ranks, int64: rank 0's images, then rank 1's, the padding among them."""
    each = -(-images // ranks)
    padded = np.arange(each * ranks) % images
    return np.concatenate([padded[rank::ranks] for rank in range(ranks)])
