"""The metrics that open_clip (github.com/mlfoundations/open_clip) logs while it trains.

One caption of each image, so a text has one rival less; ties fall as an unstable descending `argsort` leaves them.
"""

import numpy as np
import torch

from finetune.compatibility.material import Material, Printed, percent


def run(material: Material) -> Printed:
    """Figures of the first caption of each image."""
    logits = torch.from_numpy(material.similarity_IT[:, material.first(1)[:, 0]])
    lines: dict[str, float] = {}
    ways = {"image_to_text": logits, "text_to_image": logits.T}
    for name, scores in ways.items():
        order = torch.argsort(scores, descending=True)
        place = torch.where(order == torch.arange(len(order))[:, None])[1].numpy()
        lines[f"{name}_mean_rank"] = float(place.mean() + 1)
        lines[f"{name}_median_rank"] = float(np.floor(np.median(place)) + 1)
        lines |= {f"{name}_R@{k}": float(np.mean(place < k)) for k in (1, 5, 10)}
    i2t, t2i = (percent([lines[f"{name}_R@{k}"] for k in (1, 5, 10)]) for name in ways)
    return Printed(i2t, t2i, lines)
