"""Samples per second packed into shards, against webdataset's writer, on the same samples, interleaved in one run.

    python benchmarks/data/build.py [--samples 2000] [--size 224] [--rounds 5]

The samples are generated beforehand. Ours also writes checksums, image sizes and an index, syncs each file to the disk
and renames it; webdataset's writer does none of that. Prints the median ratio over the rounds, and the range.
"""

import argparse
import importlib.metadata
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import webdataset
from photos import Held

from shards.executors import Executor
from shards.sample import record_json
from shards.sources.scenes import ScenesSource
from shards.write import build_shards

PER_SHARD = 250


def ours(source: Held, out: Path, workers: int) -> float:
    start = time.perf_counter()
    build_shards(source, out, samples_per_shard=PER_SHARD, executor=Executor("local", workers))
    return len(source) / (time.perf_counter() - start)


def theirs(source: Held, out: Path) -> float:
    out.mkdir()
    start = time.perf_counter()
    with webdataset.ShardWriter(str(out / "%06d.tar"), maxcount=PER_SHARD, verbose=0) as writer:
        for sample in source.samples:
            members = {"jpg": sample.image, "json": record_json(sample), "txt": sample.captions[0]}
            writer.write({"__key__": sample.key, **members})
    return len(source) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    scenes = ScenesSource(arguments.samples, 0, "train", arguments.size)
    source = Held([replace(scenes[i], region_features=None) for i in range(len(scenes))])
    rounds = []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            rounds.append((ours(source, place / "1", 1), ours(source, place / "2", 2), theirs(source, place / "w")))
        print("ours {:7.0f}/s   two workers {:7.0f}/s   webdataset {:7.0f}/s".format(*rounds[-1]))
    version = importlib.metadata.version("webdataset")
    for name, arm in (("one process", 0), ("two workers", 1)):
        ratios = [speeds[arm] / speeds[2] for speeds in rounds]
        span = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"{name}: median ratio to webdataset {version}: {statistics.median(ratios):.2f} ({span})")


if __name__ == "__main__":
    main()
