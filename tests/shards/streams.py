"""What tests of the stream share: the sequence that several ranks read together, and damage to a shard."""

import itertools
from pathlib import Path
from typing import Any

from shards.manifest import read_index
from shards.stream import ShardStream, StreamedSample


def position_and_key(item: StreamedSample) -> tuple[int, int, str]:
    return item.epoch, item.position, item.sample.key


def global_batches(folder: Path, batch: int, count: int, *, world: int = 1, workers: int = 0) -> list[list[Any]]:
    streams = [
        ShardStream(folder, batch, rank=rank, world=world, workers=workers, transform=position_and_key)
        for rank in range(world)
    ]
    parts = zip(*(stream.batches(count) for stream in streams), strict=True)
    return [list(itertools.chain(*ranks)) for ranks in parts]


def damage(folder: Path, ordinal: int) -> None:
    """Flips one image byte of a sample in the second shard."""
    offset = read_index(folder / "shard-000001.index.parquet")["image_offset"][ordinal].as_py()
    tar = folder / "shard-000001.tar"
    content = bytearray(tar.read_bytes())
    content[offset + 30] ^= 1
    tar.write_bytes(content)
