"""Seconds for exact ranks in both directions at the size of COCO 5K (5,000 images, 25,010 texts), on random scores.

    python benchmarks/ranking.py [--rounds 5]

Against two usual ways, interleaved in one run: `topk(10)` of all scores as UNITER, ViLT and CLIP_benchmark do, which
gives recall at 10 but no ranks, and a full `argsort` of each query as VSE++, ALBEF and BLIP do, timed on every 20th.
Processor seconds stand beside wall seconds: on a machine that others use they are what a quiet one would need on one
core, and the ranks use no more than one.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from finetune.recall import Positives, Scores, ranks

COUNTS = [5] * 4990 + [6] * 10
EVERY = 20


def ours(scores_IT: Scores, texts_I: Positives, images_T: Positives) -> None:
    ranks(scores_IT, texts_I)
    ranks(scores_IT.T, images_T)


def topk(scores_IT: Scores) -> None:
    scores = torch.from_numpy(scores_IT)
    scores.topk(10, dim=1)
    scores.topk(10, dim=0)


def argsort(scores_IT: Scores) -> None:
    for row in scores_IT[::EVERY]:
        np.argsort(row)[::-1]
    for row in scores_IT.T[::EVERY]:
        np.argsort(row)[::-1]


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Wall and processor seconds."""
    start = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    image_T = np.repeat(np.arange(len(COUNTS)), COUNTS)
    scores_IT = np.random.default_rng(0).standard_normal((len(COUNTS), len(image_T)), dtype=np.float32)
    texts_I = Positives(np.split(np.arange(len(image_T)), np.cumsum(COUNTS)[:-1]))
    images_T = Positives(image_T[:, None])
    found: list[tuple[float, float, float, float]] = []
    for _ in range(rounds):
        wall, cpu = timed(lambda: ours(scores_IT, texts_I, images_T))
        best, sorted_ = timed(lambda: topk(scores_IT))[0], EVERY * timed(lambda: argsort(scores_IT))[0]
        found.append((wall, best, sorted_, cpu))
        print(f"ranks {wall:5.2f} s (processor {cpu:5.2f} s)   topk(10) {best:6.2f} s   argsort {sorted_:6.1f} s")
    for name, column in (("topk(10)", 1), ("argsort", 2)):
        ratios = [times[column] / times[0] for times in found]
        print(f"{name} / ranks: median {statistics.median(ratios):.1f}, range {min(ratios):.1f} to {max(ratios):.1f}")
    wall, cpu = (statistics.median(times[column] for times in found) for column in (0, 3))
    print(
        f"ranks: median {wall:.2f} s, processor {cpu:.2f} s; numpy {np.__version__}, torch {torch.__version__}", end=" "
    )
    print(f"on {torch.get_num_threads()} threads, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
