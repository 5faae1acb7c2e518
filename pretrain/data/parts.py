"""The shard sets that `data.shards` names, opened."""

from pretrain.config import DataConfig, WeightedShards
from shards.cache import FileCache
from shards.reader import ShardSet
from shards.selection import Selected
from shards.sources.base import Source


def open_parts(data: DataConfig) -> list[tuple[Source, float]]:
    """Each part of the mixture, as far as its selection keeps it, and its weight."""
    parts = [WeightedShards(place=data.shards)] if isinstance(data.shards, str) else data.shards
    cache = FileCache(data.cache, int(data.cache_gigabytes * 1e9)) if data.cache else None
    return [(_selected(ShardSet(part.place, cache), part.selection), part.weight) for part in parts]


def _selected(shards: ShardSet, selection: str | None) -> Source:
    return shards if selection is None else Selected(shards, selection)
