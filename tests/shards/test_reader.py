"""Random access by index: checked, picklable, usable on both sides of a fork."""

import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shards import reader
from shards.errors import DamagedSample
from shards.reader import ShardSet
from shards.sample import Identity


def test_identity_is_shard_digest_and_ordinal(shard_folder: Path) -> None:
    shards = ShardSet(shard_folder)
    assert len(shards) == 50
    assert shards.shard_sizes == [8] * 6 + [2]
    assert shards.identity(17) == Identity(shards.manifest.shards[2].sha256[:16], 1)
    assert len({shards.identity(i) for i in range(50)}) == 50
    assert shards.fingerprint() == shards.digest == ShardSet(shard_folder).digest
    with pytest.raises(IndexError):
        shards[50]
    with pytest.raises(IndexError):
        shards[-1]


def test_damage_names_shard_ordinal_and_reason(shard_folder: Path) -> None:
    tar = shard_folder / "shard-000003.tar"
    tar.write_bytes(tar.read_bytes()[:520])
    with pytest.raises(DamagedSample, match=r"^shard-000003.tar, sample 0: the image ends after 8 of \d+ bytes$"):
        ShardSet(shard_folder)[24]


def test_reading_imports_no_pandas(shard_folder: Path) -> None:
    """Some calls of pyarrow's do, and each worker would lose half a second to it."""
    code = "import sys; from shards.reader import ShardSet; ShardSet(sys.argv[1])[49]; print('pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, shard_folder], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_pickle_and_fork(shard_folder: Path, make_source: Any) -> None:
    shards = ShardSet(shard_folder)
    expected = make_source(50).samples
    assert shards[20] == expected[20]
    assert pickle.loads(pickle.dumps(shards))[20] == expected[20]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(shards.__getitem__, range(50)) == expected
    assert [shards[i] for i in range(50)] == expected


def test_few_files_stay_open(shard_folder: Path, make_source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "OPEN_SHARDS", 2)
    shards = ShardSet(shard_folder)
    for index in [*range(50), *range(0, 50, 9)]:
        assert shards[index] == make_source(50)[index]
        assert len(shards._open) <= 2
