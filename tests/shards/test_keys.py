"""Keys that repeat across shards are found, in one pass over the digests or in several."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from shards import keys
from shards.errors import UserError
from shards.write import build_shards


@pytest.mark.parametrize("at_a_time", [1 << 24, 7])
@pytest.mark.parametrize("places", [(0, 49), (3, 12), (48, 49)])
def test_a_key_in_two_shards_is_refused(
    at_a_time: int, places: tuple[int, int], make_source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "DIGESTS_AT_A_TIME", at_a_time)
    first, second = places
    source = make_source(50)
    source.samples[second] = dataclasses.replace(source.samples[second], key=f"key-{first:04d}")
    with pytest.raises(UserError, match=rf"`key` \(=key-{first:04d}\) .*must be unique"):
        build_shards(source, tmp_path, samples_per_shard=8)
    assert not (tmp_path / "manifest.json").exists()


def test_keys_that_share_a_digest_are_not_the_same(shard_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_digest", lambda key: int(key.split("-")[1]) % 5)
    indices = sorted(shard_folder.glob("*.index.parquet"))
    assert keys.repeated_key(indices, 50) is None
    assert keys.repeated_key([*indices, indices[0]], 58) == "key-0000"
