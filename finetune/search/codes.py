"""Binary codes: the signs of what a head makes of an embedding, compared by Hamming distance.

A head is a linear map, `rotation`, or one that `finetune hash` trained (`learn.py`). A rotation needs no training:

    bits <= E   PCA, then the rotation that leaves the least to the signs (ITQ, Gong and Lazebnik, CVPR 2011)
    bits >  E   random orthonormal blocks: the share of differing bits estimates the angle (Charikar, STOC 2002)

Measured on a trained two-tower model, subtracting the mean of either side changes the recall by less than a point, so
nothing is subtracted.

Shapes: Q queries, I images, E embedding, B bits, H hidden, W words of 64 bits.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetune.recall import Indices

ITERATIONS = 30
LEARN_FROM = 20_000  # images that ITQ looks at
Codes = NDArray[np.uint64]


class HashHead(nn.Module):
    """x -> sqrt(E) x M + b, plus a second layer's correction where `hidden`; shared by images and texts.

    The factor gives unit vectors entries of size 1, as layers expect. The correction starts at zero: an untrained head
    is its linear map.
    """

    def __init__(self, embedding_dim: int, bits: int, hidden: int = 0) -> None:
        super().__init__()
        self.scale = embedding_dim**0.5
        self.linear = nn.Linear(embedding_dim, bits)
        nn.init.zeros_(self.linear.bias)
        self.inner = nn.Linear(embedding_dim, hidden) if hidden else None
        self.outer = nn.Linear(hidden, bits) if hidden else None
        if self.outer:
            nn.init.zeros_(self.outer.weight)
            nn.init.zeros_(self.outer.bias)

    @property
    def bits(self) -> int:
        return self.linear.out_features

    @property
    def embedding_dim(self) -> int:
        return self.linear.in_features

    def forward(self, embedding_QE: Tensor) -> Tensor:
        """Whose signs are the code, float32 [Q, B]."""
        x_QE = self.scale * embedding_QE
        real_QB: Tensor = self.linear(x_QE)
        if self.inner and self.outer:
            real_QB = real_QB + self.outer(F.gelu(self.inner(x_QE)))
        return real_QB

    def save(self, file: Path) -> None:
        save_file(self.state_dict(), file)

    @classmethod
    def load(cls, file: Path) -> "HashHead":
        """What `save` wrote; the sizes are those of the tensors.

        Raises:
            OSError, SafetensorError, KeyError, RuntimeError: the file is missing or damaged.
        """
        tensors = load_file(file)
        bits, embedding_dim = tensors["linear.weight"].shape
        head = cls(embedding_dim, bits, len(tensors.get("inner.bias", ())))
        head.load_state_dict(tensors)
        return head.eval()


def rotation(embedding_IE: NDArray[np.float32], bits: int, seed: int = 0) -> HashHead:
    """The head that needs no training. Deterministic for one seed."""
    head = HashHead(embedding_IE.shape[1], bits)
    with torch.no_grad():
        head.linear.weight.copy_(torch.from_numpy(_map(embedding_IE, bits, np.random.default_rng(seed)).T))
    return head.eval()


def gaussian(embedding_dim: int, bits: int, seed: int = 0) -> HashHead:
    """Signs of random projections (Charikar, STOC 2002): the yardstick of every code."""
    head = HashHead(embedding_dim, bits)
    with torch.no_grad():
        head.linear.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return head.eval()


def _map(embedding_IE: NDArray[np.float32], bits: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """float64 [E, B]."""
    size = embedding_IE.shape[1]
    if bits > size:
        blocks = [_orthonormal(size, generator) for _ in range(-(-bits // size))]
        return np.concatenate(blocks, axis=1)[:, :bits]
    step = -(-len(embedding_IE) // LEARN_FROM)
    sample = embedding_IE[::step].astype(np.float64)
    sample -= sample.mean(0)
    _, directions_EE = np.linalg.eigh(sample.T @ sample)
    main_EB = directions_EE[:, ::-1][:, :bits]
    return main_EB @ _least_quantised(sample @ main_EB, generator)


def _least_quantised(sample_IB: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """Alternates signs and the best rotation to them (orthogonal Procrustes), float64 [B, B]."""
    rotation_BB = _orthonormal(sample_IB.shape[1], generator)
    for _ in range(ITERATIONS):
        signs_IB = np.where(sample_IB @ rotation_BB > 0, 1.0, -1.0)
        left, _, right = np.linalg.svd(sample_IB.T @ signs_IB)
        rotation_BB = left @ right
    return rotation_BB


def _orthonormal(size: int, generator: np.random.Generator) -> NDArray[np.float64]:
    return np.linalg.qr(generator.standard_normal((size, size)))[0]


@torch.inference_mode()
def encode(embedding_QE: NDArray[np.float32], head: HashHead) -> Codes:
    """Signs packed to uint64 [Q, W], each column contiguous; the number of bits must be a multiple of 64."""
    signs_QB = (head(torch.from_numpy(np.ascontiguousarray(embedding_QE))) > 0).numpy()
    return np.asfortranarray(np.packbits(signs_QB, axis=1).view(np.uint64))


def hamming_top(query_QW: Codes, code_IW: Codes, count: int) -> Indices:
    """The `count` nearest codes of each query, int64 [Q, count], near first; equal distances in no set order."""
    count = min(count, len(code_IW))
    found = np.empty((len(query_QW), count), np.int64)
    for row, words_W in enumerate(query_QW):
        distance_I = hamming(words_W, code_IW)
        near = np.argpartition(distance_I, count - 1)[:count]
        found[row] = near[np.argsort(distance_I[near], kind="stable")]
    return found


def hamming(words_W: Codes, code_IW: Codes) -> NDArray[np.uint16]:
    """Differing bits between one code and each of many, [I]; word by word, since numpy sums short rows slowly."""
    distance_I = np.zeros(len(code_IW), np.uint16)
    for word, column_I in zip(words_W, code_IW.T, strict=True):
        distance_I += np.bitwise_count(column_I ^ word)
    return distance_I
