"""How long a shard set of hundreds of millions of samples takes to open and to resume, and in how much memory.

    python benchmarks/data/manifest.py [--shards 40000] [--samples 10000] [--rounds 5]

One real shard of `--samples` tiny pictures stands, through hard links, under the names of all shards; the manifest
gives each a digest of its own. Every round is a fresh process that opens a stream, goes on at 90 % of an epoch and
reads a batch there. For comparison, the same number of shards with a tenth of the samples.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from shards.manifest import BuildPlan, Manifest, ShardEntry, read_index, shard_name, to_json
from shards.sample import Identity, Sample
from shards.write import build_shards

BATCH = 1024
PROBE = """
import json, resource, sys, time
import shards.stream
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
imported, start = peak(), time.perf_counter()
stream = shards.stream.ShardStream(sys.argv[1], 1024)
opened = time.perf_counter()
state = stream.state_dict()
state["position"] = int(0.9 * stream.mixture.samples) // 1024 * 1024
stream.load_state_dict(state)
batch = next(stream.batches(1))
resumed = time.perf_counter()
print(json.dumps({"open_s": opened - start, "resume_s": resumed - opened, "imports_MiB": imported,
                  "peak_MiB": peak(), "samples": stream.mixture.samples, "read": len(batch)}))
"""


class Dots:
    """One tiny picture, again and again."""

    name = "dots"

    def __init__(self, count: int) -> None:
        import simplejpeg

        self.count, self.image = count, simplejpeg.encode_jpeg(np.zeros((8, 8, 3), dtype=np.uint8))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        return Sample(f"{index:08d}", self.image, "jpg", (f"dot {index}",))

    def identity(self, index: int) -> Identity:
        return Identity("dots", index)

    def fingerprint(self) -> str:
        return hashlib.sha256(str(self.count).encode()).hexdigest()


def make(folder: Path, shards: int, samples: int) -> None:
    """A finished build of `shards` shards that are all the same file."""
    build_shards(Dots(samples), folder, samples_per_shard=samples)
    first = folder / shard_name(0)
    index = first.with_name(first.name.replace(".tar", ".index.parquet"))
    # Without the digest of its tar inside, one index can serve all names.
    pq.write_table(read_index(index).replace_schema_metadata(None), index, compression="zstd")
    index_sha256, size = hashlib.sha256(index.read_bytes()).hexdigest(), first.stat().st_size
    entries = []
    for number in range(shards):
        name = shard_name(number)
        digest = hashlib.sha256(name.encode()).hexdigest()
        entry = ShardEntry(name=name, samples=samples, bytes=size, sha256=digest, index_sha256=index_sha256)
        entries.append(entry)
        if number:
            os.link(first, folder / name)
            os.link(index, folder / entry.index_name)
    plan = BuildPlan(source="dots", fingerprint="0" * 64, samples=shards * samples, samples_per_shard=samples)
    (folder / "manifest.json").write_bytes(to_json(Manifest(plan=plan, shards=tuple(entries))))


def probe(folder: Path) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", PROBE, folder], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def summary(rounds: list[dict[str, float]], name: str, unit: str) -> str:
    values = [measured[name] for measured in rounds]
    return f"{statistics.median(values):.2f} {unit} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=40_000)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("duostream", "pydantic", "pyarrow", "torch")]
    print(f"Python {platform.python_version()}, {', '.join(versions)}")
    with tempfile.TemporaryDirectory() as root:
        arms = {arguments.samples: Path(root, "large"), arguments.samples // 10: Path(root, "small")}
        for samples, folder in arms.items():
            make(folder, arguments.shards, samples)
        measured: dict[int, list[dict[str, float]]] = {samples: [] for samples in arms}
        for _ in range(arguments.rounds):
            for samples, folder in arms.items():
                measured[samples].append(probe(folder))
    for samples, rounds in measured.items():
        print(f"{arguments.shards} shards of {samples}: {int(rounds[0]['samples']):,} samples")
        print(f"  open                           {summary(rounds, 'open_s', 's')}")
        print(f"  resume at 90 % and read {BATCH}   {summary(rounds, 'resume_s', 's')}")
        print(f"  peak memory                    {summary(rounds, 'peak_MiB', 'MiB')}")
        print(f"  of that, imports               {summary(rounds, 'imports_MiB', 'MiB')}")
    large, small = measured.values()
    ratio = statistics.median(a["peak_MiB"] / b["peak_MiB"] for a, b in zip(large, small, strict=True))
    print(f"median ratio of peak memory, ten times the samples in as many shards: {ratio:.2f}")


if __name__ == "__main__":
    main()
