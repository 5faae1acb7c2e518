"""The first stage: which images may be nearest to a query. One class per kind of search, all of one shape.

    exact    every dot product
    hnsw     a graph of neighbours (Malkov and Yashunin, arXiv:1603.09320), faiss; effort is efSearch
    ivfpq    cells and product-quantised residuals (Jegou et al., TPAMI 2011), faiss; effort is nprobe
    binary   Hamming distance of codes (`codes.py`); effort is the length of the shortlist

Each proposes candidates; `ranked` orders them by their exact dot product, so that every score shown is a true cosine.

Shapes: Q queries, I images, E embedding, C candidates, k results.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from finetune.candidates import top
from finetune.recall import Indices, Scores
from finetune.search.codes import Codes, HashHead, encode, hamming_top, rotation
from shards.errors import UserError

Kind = Literal["exact", "hnsw", "ivfpq", "binary"]
Embeddings = NDArray[np.float32]
NEIGHBOURS, BUILD_EFFORT = 32, 200  # of HNSW: links of a node, and how widely they are looked for
FEWEST_IVFPQ = 1000
PQ_BYTES, PQ_POINTS = 32, 64  # of IVF-PQ: bytes of a code at most, and training points per centroid
PQ_SHORTLIST = 200
FILE, HEAD, CODES = "faiss.index", "head.safetensors", "codes.npy"


class Nearest(Protocol):
    """A way to find candidates. `efforts` are what tuning tries, ascending; `default` where it cannot measure."""

    efforts: Sequence[int]
    default: int

    def candidates(self, query_QE: Embeddings, k: int, effort: int) -> Indices:
        """int64 [Q, C], C at least min(k, I), -1 where a row has fewer, in the order of the first stage."""
        ...

    def save(self, folder: Path) -> None: ...


class Exact:
    """Looks at everything."""

    efforts: Sequence[int] = (0,)
    default = 0

    def __init__(self, embedding_IE: Embeddings) -> None:
        self.embedding_IE = embedding_IE

    def candidates(self, query_QE: Embeddings, k: int, effort: int) -> Indices:
        return top(query_QE @ self.embedding_IE.T, k)[0]

    def save(self, folder: Path) -> None:
        """The embeddings are all it needs."""


class Graph:
    """HNSW by inner product."""

    efforts: Sequence[int] = (16, 32, 64, 128, 256, 512, 1024)
    default = 128

    def __init__(self, index: Any) -> None:
        self.index = index

    @classmethod
    def build(cls, embedding_IE: Embeddings) -> "Graph":
        faiss = load_faiss()
        index = faiss.IndexHNSWFlat(embedding_IE.shape[1], NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = BUILD_EFFORT
        index.add(embedding_IE)
        return cls(index)

    def candidates(self, query_QE: Embeddings, k: int, effort: int) -> Indices:
        k = min(k, self.index.ntotal)
        settings = load_faiss().SearchParametersHNSW(efSearch=max(effort, k))
        return self.index.search(query_QE, k, params=settings)[1]

    def save(self, folder: Path) -> None:
        load_faiss().write_index(self.index, str(folder / FILE))


class Cells:
    """IVF-PQ by inner product."""

    def __init__(self, index: Any) -> None:
        self.index = index
        self.efforts: Sequence[int] = [2**power for power in range(int(index.nlist).bit_length())]
        self.default = self.efforts[len(self.efforts) // 2]

    @classmethod
    def build(cls, embedding_IE: Embeddings) -> "Cells":
        """Raises UserError for a gallery too small to train on."""
        images, size = embedding_IE.shape
        if images < FEWEST_IVFPQ:
            raise UserError(f"`--kind` (=ivfpq) needs at least {FEWEST_IVFPQ:,} pictures, not {images}: use exact")
        faiss = load_faiss()
        cells = min(4 * round(images**0.5), images // 39)  # faiss warns below 39 points per cell
        parts = max(part for part in range(1, PQ_BYTES + 1) if size % part == 0)
        index = faiss.index_factory(size, f"IVF{cells},PQ{parts}np", faiss.METRIC_INNER_PRODUCT)
        index.pq.cp.max_points_per_centroid = PQ_POINTS
        index.pq.cp.min_points_per_centroid = 1
        index.train(embedding_IE)
        index.add(embedding_IE)
        return cls(index)

    def candidates(self, query_QE: Embeddings, k: int, effort: int) -> Indices:
        settings = load_faiss().SearchParametersIVF(nprobe=effort)
        return self.index.search(query_QE, min(max(k, PQ_SHORTLIST), self.index.ntotal), params=settings)[1]

    def save(self, folder: Path) -> None:
        load_faiss().write_index(self.index, str(folder / FILE))


class Binary:
    """Hamming search over codes."""

    efforts: Sequence[int] = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
    default = 500

    def __init__(self, head: HashHead, code_IW: Codes) -> None:
        self.head, self.code_IW = head, code_IW

    @classmethod
    def build(cls, embedding_IE: Embeddings, bits: int, trained: HashHead | None = None) -> "Binary":
        head = trained or rotation(embedding_IE, bits)
        return cls(head, encode(embedding_IE, head))

    def candidates(self, query_QE: Embeddings, k: int, effort: int) -> Indices:
        return hamming_top(encode(query_QE, self.head), self.code_IW, max(k, effort))

    def save(self, folder: Path) -> None:
        self.head.save(folder / HEAD)
        np.save(folder / CODES, self.code_IW)


def build(kind: Kind, embedding_IE: Embeddings, bits: int = 0, trained: HashHead | None = None) -> Nearest:
    """Makes the first stage of `kind`.

    Args:
        bits, trained: Of `binary` alone: the length of the codes, and a trained head of that length if there is one.

    Raises:
        UserError: faiss is needed and not installed, or the gallery is too small for `kind`.
    """
    match kind:
        case "exact":
            return Exact(embedding_IE)
        case "hnsw":
            return Graph.build(embedding_IE)
        case "ivfpq":
            return Cells.build(embedding_IE)
        case "binary":
            return Binary.build(embedding_IE, bits, trained)


def load(kind: Kind, folder: Path, embedding_IE: Embeddings) -> Nearest:
    """What `save` wrote. Raises UserError where faiss is needed and not installed."""
    match kind:
        case "exact":
            return Exact(embedding_IE)
        case "binary":
            return Binary(HashHead.load(folder / HEAD), np.load(folder / CODES, mmap_mode="r"))
        case _:
            index = load_faiss().read_index(str(folder / FILE))
            return Graph(index) if kind == "hnsw" else Cells(index)


def ranked(
    candidate_QC: Indices, query_QE: Embeddings, embedding_IE: Embeddings, k: int
) -> list[tuple[Indices, Scores]]:
    """The best k of each row's candidates with their dot products; equal scores by place in the gallery."""
    found = []
    for candidates, query_E in zip(candidate_QC, query_QE, strict=True):
        known = np.sort(candidates[candidates >= 0])
        scores = embedding_IE[known] @ query_E
        order = np.argsort(-scores, kind="stable")[:k]
        found.append((known[order], scores[order]))
    return found


def load_faiss() -> Any:
    """Raises UserError where faiss is not installed."""
    try:
        import faiss
    except ImportError:
        raise UserError("`--kind` hnsw and ivfpq need faiss: pip install 'duostream[search]'") from None
    return faiss
