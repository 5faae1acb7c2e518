"""Samples per second, image bytes and caption as they are stored, against the field's loaders on the same bytes.

    python benchmarks/data/read.py [--photos 4096] [--workers 2] [--batch 64] [--epochs 2] [--rounds 5] [--data FOLDER]

Measured twice: in one process, and handed from worker processes to this one, as in training. All arms shuffle; the
files are in the page cache. Ours alone checks each member's crc32. In all arms alike this process then reads every
byte of every image once, so that a view of memory is not taken for work that nobody has to do. Prints the median
ratio over the rounds, and the range; `peers.py` says what to install.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from isal.isal_zlib import crc32
from peers import PEERS, Raw, options, place, prepare, span, start, versions
from photos import describe, photos

from shards.stream import ShardStream

WARM_UP = 4
"""Batches of each epoch that are not timed."""


def ours(folder: Path, workers: int, batch: int) -> Raw:
    stream = ShardStream(folder, batch, workers=workers)
    count = stream.mixture.samples // batch
    return ([item.sample.image for item in items] for items in stream.batches(count))


def rate(arm: Callable[[Path, int, int], Raw], folder: Path, workers: int, batch: int, epochs: int) -> float:
    """Samples per second behind the first of each epoch."""
    count, seconds = 0, 0.0
    for _ in range(epochs):
        batches = iter(arm(folder, workers, batch))
        first = next(batches)
        for _ in itertools.islice(batches, WARM_UP * batch // len(first) - 1):
            pass
        start = time.perf_counter()
        count += sum(len([crc32(image) for image in images]) for images in batches)
        seconds += time.perf_counter() - start
    return count / seconds


def main() -> None:
    parser = options(__doc__, photos=4096)
    parser.add_argument("--epochs", type=int, default=2)
    start(parser.parse_args(), compare)


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    held = photos(arguments.photos)
    prepare(held, folder)
    print(versions("torch", "isal"))
    print(describe(held))
    arms = {"ours": ours, **{peer.name: peer.raw for peer in PEERS if peer.raw}}
    for workers in (0, arguments.workers):
        print(f"{workers} workers, batches of {arguments.batch}" if workers else "in one process")
        rounds: list[dict[str, float]] = []
        for _ in range(arguments.rounds):
            rounds.append(
                {
                    name: rate(arm, place(folder, name), workers, arguments.batch, arguments.epochs)
                    for name, arm in arms.items()
                }
            )
            print("  " + "   ".join(f"{name} {speed:.0f}/s" for name, speed in rounds[-1].items()), flush=True)
        for peer in PEERS:
            if peer.raw:
                ratios = [speeds["ours"] / speeds[peer.name] for speeds in rounds]
                print(f"  ours / {peer.name} {version(peer.package)}: {span(ratios)}")


if __name__ == "__main__":
    main()
