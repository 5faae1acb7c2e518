"""Binary codes: the signs of a linear map of the embedding, compared by Hamming distance.

    bits <= E   PCA, then the rotation that leaves the least to the signs (ITQ, Gong and Lazebnik, CVPR 2011)
    bits >  E   random orthonormal blocks: the share of differing bits estimates the angle (Charikar, STOC 2002)

Measured on a trained two-tower model, subtracting the mean of either side changes the recall by less than a point, so
nothing is subtracted. Any other map [E, bits] can take the place of `learn_map`'s: codes and search know no more of it.

Shapes: Q queries, I images, E embedding, W words of 64 bits.
"""

import numpy as np
from numpy.typing import NDArray

from finetune.recall import Indices

ITERATIONS = 30
LEARN_FROM = 20_000  # images that ITQ looks at
Codes = NDArray[np.uint64]
Map = NDArray[np.float32]


def learn_map(embedding_IE: NDArray[np.float32], bits: int, seed: int = 0) -> Map:
    """The map float32 [E, bits]. Deterministic for one seed."""
    generator = np.random.default_rng(seed)
    size = embedding_IE.shape[1]
    if bits > size:
        blocks = [_orthonormal(size, generator) for _ in range(-(-bits // size))]
        return np.concatenate(blocks, axis=1)[:, :bits].astype(np.float32)
    step = -(-len(embedding_IE) // LEARN_FROM)
    sample = embedding_IE[::step].astype(np.float64)
    sample -= sample.mean(0)
    _, directions_EE = np.linalg.eigh(sample.T @ sample)
    main_EB = directions_EE[:, ::-1][:, :bits]
    return (main_EB @ _least_quantised(sample @ main_EB, generator)).astype(np.float32)


def _least_quantised(sample_IB: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """Alternates signs and the best rotation to them (orthogonal Procrustes), float64 [bits, bits]."""
    rotation_BB = _orthonormal(sample_IB.shape[1], generator)
    for _ in range(ITERATIONS):
        signs_IB = np.where(sample_IB @ rotation_BB > 0, 1.0, -1.0)
        left, _, right = np.linalg.svd(sample_IB.T @ signs_IB)
        rotation_BB = left @ right
    return rotation_BB


def _orthonormal(size: int, generator: np.random.Generator) -> NDArray[np.float64]:
    return np.linalg.qr(generator.standard_normal((size, size)))[0]


def encode(embedding_QE: NDArray[np.float32], map_EB: Map) -> Codes:
    """Signs packed to uint64 [Q, W], each column contiguous; the number of bits must be a multiple of 64."""
    return np.asfortranarray(np.packbits(embedding_QE @ map_EB > 0, axis=1).view(np.uint64))


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
