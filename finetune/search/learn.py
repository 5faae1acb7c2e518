"""Training of a hash head on a frozen checkpoint's embeddings: short codes whose order is that of exact search.

The code b is the sign of the head's output; gradients pass it as if it were tanh (straight-through estimator, Bengio et
al., arXiv:1308.3432; BinaryNet, arXiv:1602.02830). With s(t, i) = e^z <b_t, b_i> / B, z learned, a batch of pairs costs

    distilled   cross-entropy from softmax(cosine(t, i) / temperature) over images to softmax(s(t, i)): the order of
                exact search in full (ListNet, Cao et al., ICML 2007; Hinton et al., arXiv:1503.02531)
    contrast    -log of the probability of a pair's own partner under softmax(s), both ways (DCMH, arXiv:1602.02255)
    quantised   (|h| - 1)^2: outputs near the signs they become (HashNet's aim, arXiv:1702.00758)

WEIGHTS says how they are added. Balance of bits was tried and gained nothing; noise on the embeddings lost recall.

Shapes: P pairs of a batch, B bits.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.recall import Indices
from finetune.search.codes import HashHead, rotation
from shards.console import progress

HIDDEN, BATCH, LEARNING_RATE = 512, 512, 1e-3
SHARPNESS = 0.4  # the teacher's temperature, in standard deviations of the cosines
FIRST_SCALE = 8.0  # e^z at the start
WEIGHTS = {"distilled": 0.7, "contrast": 0.3, "quantised": 0.1}
STEPS = 600


@dataclass(frozen=True)
class Pairs:
    """Embeddings of a corpus, and which belong together.

    Attributes:
        image_IE, text_TE: float32, unit vectors.
        image_P, text_P: int64 [P], the rows of each pair.
    """

    image_IE: NDArray[np.float32]
    text_TE: NDArray[np.float32]
    image_P: Indices
    text_P: Indices


def learn_head(pairs: Pairs, bits: int, steps: int = STEPS, seed: int = 0) -> HashHead:
    """Trains on the CPU, from the rotation that needs no training; deterministic for one seed and number of threads."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = HashHead(pairs.image_IE.shape[1], bits, HIDDEN)
        head.linear.load_state_dict(rotation(pairs.image_IE, bits, seed).linear.state_dict())
        return _train(head, pairs, steps)


def _train(head: HashHead, pairs: Pairs, steps: int) -> HashHead:
    image_IE, text_TE = torch.from_numpy(pairs.image_IE), torch.from_numpy(pairs.text_TE)
    image_P, text_P = torch.from_numpy(pairs.image_P), torch.from_numpy(pairs.text_P)
    temperature = SHARPNESS * _deviation(text_TE, image_IE)
    log_scale = nn.Parameter(torch.tensor(FIRST_SCALE).log())
    optimizer = torch.optim.AdamW([*head.parameters(), log_scale], lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    with progress("train hash head", steps) as bar:
        for _ in range(steps):
            chosen = torch.randint(len(image_P), (min(BATCH, len(image_P)),))
            image, text = image_P[chosen], text_P[chosen]
            losses = code_losses(
                head, log_scale.exp(), image_IE[image], text_TE[text], _together(image, text), temperature
            )
            loss = sum((WEIGHTS[name] * value for name, value in losses.items()), torch.zeros(()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.advance()
    return head.eval()


def code_losses(
    head: HashHead, scale: Tensor, image_PE: Tensor, text_PE: Tensor, together_PP: Tensor, temperature: float
) -> dict[str, Tensor]:
    """The terms of a batch by name, scalars.

    Args:
        scale: e^z.
        together_PP: bool, text i belongs to image j.
        temperature: Of the teacher's softmax.
    """
    image_PB, text_PB = head(image_PE), head(text_PE)
    logits_PP = scale / head.bits * straight_through(text_PB) @ straight_through(image_PB).T
    teacher_PP = F.softmax(text_PE @ image_PE.T / temperature, 1)
    by_text_PP, by_image_PP = F.log_softmax(logits_PP, 1), F.log_softmax(logits_PP.T, 1)
    right_PP = together_PP / together_PP.sum(1, keepdim=True)
    right_of_image_PP = together_PP.T / together_PP.T.sum(1, keepdim=True)
    contrast = (right_PP * by_text_PP).sum(1).mean() + (right_of_image_PP * by_image_PP).sum(1).mean()
    return {
        "distilled": -(teacher_PP * by_text_PP).sum(1).mean(),
        "contrast": -contrast / 2,
        "quantised": ((image_PB.abs() - 1) ** 2).mean() + ((text_PB.abs() - 1) ** 2).mean(),
    }


def straight_through(real_PB: Tensor) -> Tensor:
    """1 or -1, with tanh's gradient."""
    soft_PB = torch.tanh(real_PB)
    return soft_PB + (torch.where(real_PB > 0, 1.0, -1.0) - soft_PB).detach()


def _together(image_P: Tensor, text_P: Tensor) -> Tensor:
    """Which texts of a batch belong to which images: those of the same image, and the same text wherever it stands."""
    return (image_P[:, None] == image_P) | (text_P[:, None] == text_P)


def _deviation(text_TE: Tensor, image_IE: Tensor, most: int = 2000) -> float:
    """Of the cosines between texts and images, over `most` of each at most."""
    texts, images = (x[:: -(-len(x) // most)] for x in (text_TE, image_IE))
    return (texts @ images.T).std().item()
