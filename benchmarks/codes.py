"""Recall of binary codes against exact search by text queries: a trained head, ITQ's rotation and random projections.

    python benchmarks/codes.py --ckpt CKPT --train SHARDS --test SHARDS [--bits 64 128] [--seeds 5]
    python benchmarks/codes.py --ckpt CKPT --annotations JSON --images DIR [--test-split val]

Every arm has the same bits, pictures and captions. The head learns from the training pairs alone; the rotation looks at
the pictures that are searched, as `finetune index` lets it. Shown: the share of exact search's first ten among the ten
(and fifty) nearest codes of each caption, and how often the caption's own picture is the nearest, or among ten; exact
search's own figures for these last. A round is a seed; medians and ranges.
"""

import argparse
import importlib.metadata
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from finetune.recall import Indices, Scores
from finetune.retrieval import open_input
from finetune.search.codes import HashHead, encode, gaussian, hamming_top, rotation
from finetune.search.encoder import Encoder
from finetune.search.head import encode_pairs
from finetune.search.learn import Pairs, learn_head
from finetune.search.tune import ROUNDING, tenth_scores
from pretrain.checkpoint import load_checkpoint

EVERYTHING = 1 << 31


def figures(ranking_TI: Indices, exact_TI: Scores, pairs: Pairs) -> list[float]:
    """recall@10, the same of a shortlist of 50, and R@1 and R@10 of pairs, in percent."""
    right = (
        np.take_along_axis(exact_TI, ranking_TI, 1) >= tenth_scores(pairs.text_TE, pairs.image_IE)[:, None] - ROUNDING
    )
    own_P = ranking_TI[pairs.text_P] == pairs.image_P[:, None]
    shares = [right[:, :10].sum(1) / 10, np.minimum(right[:, :50].sum(1), 10) / 10, own_P[:, 0], own_P[:, :10].any(1)]
    return [100 * float(share.mean()) for share in shares]


def by_codes(head: HashHead, exact_TI: Scores, pairs: Pairs) -> list[float]:
    return figures(hamming_top(encode(pairs.text_TE, head), encode(pairs.image_IE, head), 50), exact_TI, pairs)


def show(name: str, rounds: Sequence[Sequence[float]]) -> None:
    columns = [f"{statistics.median(c):5.1f} ({min(c):.1f} to {max(c):.1f})" for c in zip(*rounds, strict=True)]
    print(f"{name:22} " + "  ".join(f"{column:22}" for column in columns), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", type=Path, required=True)
    for name in ("train", "test", "annotations", "images"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--test-split", default="test")
    parser.add_argument("--bits", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    encoder = Encoder(load_checkpoint(arguments.ckpt))
    training, pairs = (
        encode_pairs(encoder, open_input(arguments.annotations, arguments.images, split, shards).source, EVERYTHING)
        for split, shards in (("train", arguments.train), (arguments.test_split, arguments.test))
    )
    exact_TI = pairs.text_TE @ pairs.image_IE.T
    print(
        f"{len(training.image_IE):,} pictures learned from, {len(pairs.image_IE):,} searched by {len(pairs.text_TE):,} "
        f"captions; {pairs.image_IE.shape[1]} numbers each; recall@10, of a shortlist of 50, R@1, R@10"
    )
    show("exact", [figures(np.argsort(-exact_TI, axis=1, kind="stable")[:, :50], exact_TI, pairs)])
    for bits in arguments.bits:
        rounds: dict[str, list[list[float]]] = {"trained head": [], "rotation": [], "random projections": []}
        seconds = []
        for seed in range(arguments.seeds):
            start = time.perf_counter()
            head = learn_head(training, bits, seed=seed)
            seconds.append(time.perf_counter() - start)
            others = rotation(pairs.image_IE, bits, seed), gaussian(encoder.embedding_dim, bits, seed)
            for name, arm in zip(rounds, (head, *others), strict=True):
                rounds[name].append(by_codes(arm, exact_TI, pairs))
        for name, found in rounds.items():
            show(f"{name} {bits}", found)
        print(f"trained in {statistics.median(seconds):.0f} s")
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "numpy")))


if __name__ == "__main__":
    main()
