"""Milliseconds and recall of each kind of search against exact search, by text queries, interleaved in one run.

    python benchmarks/search.py INDEX [--times 1] [--queries 400] [--rounds 5]

INDEX gives embeddings, checkpoint and captions. `--times 10` stands in for a larger gallery: nine perturbed copies of
each embedding are added (unit vectors at a cosine of about 0.9), which is harder for the short codes than new pictures.
"""

import argparse
import importlib.metadata
import statistics
import time
from pathlib import Path

import numpy as np

from finetune.search.encoder import embeddings
from finetune.search.nearest import Embeddings, Exact, Kind, Nearest, build, ranked
from finetune.search.query import Searcher
from finetune.search.tune import measure, tune

ARMS: list[tuple[str, Kind, int]] = [
    ("hnsw", "hnsw", 0),
    ("ivfpq", "ivfpq", 0),
    *((f"binary {bits}", "binary", bits) for bits in (64, 128, 256, 512)),
]


def larger(embedding_IE: Embeddings, times: int) -> Embeddings:
    rng = np.random.default_rng(0)
    noise = 0.5 / embedding_IE.shape[1] ** 0.5
    parts = [embedding_IE + noise * rng.standard_normal(embedding_IE.shape, np.float32) for _ in range(times - 1)]
    whole = np.concatenate([embedding_IE, *parts])
    return whole / np.linalg.norm(whole, axis=1, keepdims=True)


def milliseconds(nearest: Nearest, query_QE: Embeddings, embedding_IE: Embeddings, effort: int) -> float:
    """Per query, one at a time."""
    begin = time.perf_counter()
    for query_1E in np.split(query_QE, len(query_QE)):
        ranked(nearest.candidates(query_1E, 10, effort), query_1E, embedding_IE, 10)
    return 1000 * (time.perf_counter() - begin) / len(query_QE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("index", type=Path)
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    searcher = Searcher.open(arguments.index)
    captions = [caption for caption in dict.fromkeys(searcher.index.items.captions) if caption]
    chosen = captions[:: max(1, len(captions) // arguments.queries)][: arguments.queries]
    query_QE = embeddings(searcher.encoder.texts(chosen))
    embedding_IE = larger(np.asarray(searcher.index.embedding_IE), arguments.times)
    exact = Exact(embedding_IE)
    print(f"{len(embedding_IE):,} pictures of {embedding_IE.shape[1]} numbers, {len(chosen)} captions; tuned for 0.95")
    for name, kind, bits in ARMS:
        nearest = build(kind, embedding_IE, bits)
        effort, _ = tune(nearest, query_QE, embedding_IE, 0.95)
        found = measure(nearest, query_QE[1::2], embedding_IE, effort)
        rounds = [
            (milliseconds(nearest, query_QE, embedding_IE, effort), milliseconds(exact, query_QE, embedding_IE, 0))
            for _ in range(arguments.rounds)
        ]
        ratios = [theirs / ours for ours, theirs in rounds]
        print(
            f"{name:11} effort {effort:5}  recall@10 {found.found:.3f} (unrefined {found.unrefined:.3f})  "
            f"{statistics.median(ours for ours, _ in rounds):6.3f} ms, exact / this "
            f"{statistics.median(ratios):5.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("faiss-cpu", "numpy")))


if __name__ == "__main__":
    main()
