"""Samples per second of the stream against webdataset's loader, on the same shards, interleaved in one run.

    python benchmarks/stream.py SHARDS [--rounds 5]

Both hand out raw image bytes and captions, shuffled, in one process. Prints the median ratio over the rounds.
"""

import argparse
import importlib.metadata
import json
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

import webdataset

from shards.reader import ShardSet
from shards.stream import ShardStream


def rate(samples: Iterable[object], limit: int) -> float:
    start, count = time.perf_counter(), 0
    for _ in samples:
        count += 1
        if count == limit:
            break
    return count / (time.perf_counter() - start)


def ours(folder: Path, limit: int) -> float:
    stream = ShardStream(folder, global_batch=100)
    return rate((item.sample.captions for batch in stream.batches() for item in batch), limit)


def theirs(folder: Path, limit: int) -> float:
    tars = sorted(str(path) for path in folder.glob("*.tar"))
    loader = webdataset.WebDataset(tars, shardshuffle=len(tars), empty_check=False).shuffle(1000)
    return rate((json.loads(sample["json"])["captions"] for sample in loader), limit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    limit = len(ShardSet(arguments.shards))
    rounds = [(ours(arguments.shards, limit), theirs(arguments.shards, limit)) for _ in range(arguments.rounds)]
    for us, them in rounds:
        print(f"ours {us:8.0f}/s   webdataset {them:8.0f}/s   ratio {us / them:.1f}")
    version = importlib.metadata.version("webdataset")
    print(f"median ratio to webdataset {version}: {statistics.median(us / them for us, them in rounds):.1f}")


if __name__ == "__main__":
    main()
