"""Shards in a bucket: against a real S3-compatible server, and against one that answers as a busy S3 does."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.cache import FileCache
from shards.errors import DamagedSample, UserError
from shards.reader import ShardSet
from shards.remote import Patience
from shards.stream import ShardStream, StreamedSample
from tests.shards.server import serving

PATIENT = Patience(timeout=30.0, tries=4, total=120.0, first_wait=0.01)


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def bucket(account: None, shard_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of the shard folder in a bucket of moto's server."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        client = boto3.client("s3")
        client.create_bucket(Bucket="pairs")
        for path in shard_folder.iterdir():
            client.upload_file(str(path), "pairs", f"some/set/{path.name}")
        client.close()
        yield "s3://pairs/some/set"
    finally:
        server.stop()


def key(item: StreamedSample) -> tuple[int, str]:
    return item.position, item.sample.key


def test_a_bucket_is_read_like_a_folder(bucket: str, shard_folder: Path, tmp_path: Path) -> None:
    reference = list(ShardStream(shard_folder, 8, transform=key).batches(9))
    assert list(ShardStream(ShardSet(bucket, patience=PATIENT), 8, transform=key, workers=1).batches(9)) == reference
    cached = ShardSet(bucket, FileCache(tmp_path / "cache", 10**9), PATIENT)
    assert list(ShardStream(cached, 8, transform=key).batches(9)) == reference
    with pytest.raises(UserError, match=r"^`shards` \(=s3://pairs/other\) has no manifest.json$"):
        ShardSet("s3://pairs/other", patience=PATIENT)


def test_a_busy_bucket_is_asked_again_and_a_broken_one_is_a_counted_error(
    account: None, shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(shard_folder, tmp_path / "served/pairs/set")
    tar = "pairs/set/shard-000001.tar"
    with serving(tmp_path / "served") as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        shards = ShardSet("s3://pairs/set", patience=PATIENT)
        server.faults[tar] = ["503", "500", "short"]
        assert shards[9] == ShardSet(shard_folder)[9]
        assert server.requests[tar] == 4
        server.always[tar] = "503"
        with pytest.raises(DamagedSample, match=r"shard-000001.tar cannot be read after 4 tries in \d+ s: status 503$"):
            shards[10]
        assert server.requests[tar] == 8
