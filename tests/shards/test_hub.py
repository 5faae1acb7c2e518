"""Shards in a dataset repository: hf:// through huggingface_hub, against the few answers of a hub that it asks for."""

import json
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import fsspec
import pytest

from shards.errors import UserError
from shards.reader import ShardSet
from shards.remote import Patience
from shards.stream import ShardStream, StreamedSample
from tests.shards.server import Handler

COMMIT = "a" * 40


class Hub(Handler):
    """One dataset, `me/pairs`, with the shards under `set/`."""

    server: Any

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        files = self.server.folder
        if path == "/api/datasets/me/pairs":
            return self._json({"id": "me/pairs", "sha": COMMIT, "private": False, "downloads": 0, "tags": []})
        if path.endswith("/tree/main/set"):
            return self._json([self._entry(file) for file in sorted(files.iterdir())])
        if path.startswith("/datasets/me/pairs/resolve/main/set/"):
            return self._range(files / path.rpartition("/")[2])
        return self._answer(404, b"")

    def _entry(self, file: Path) -> dict[str, Any]:
        return {"type": "file", "oid": "b" * 40, "size": file.stat().st_size, "path": f"set/{file.name}"}

    def _json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _range(self, file: Path) -> None:
        content = file.read_bytes()
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last) + 1 if last else None]
        self._answer(206, part, {"Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"})


@pytest.fixture
def hub(shard_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.folder = shard_folder  # type: ignore[attr-defined]
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": url, "token": False})
        try:
            yield "hf://datasets/me/pairs"
        finally:
            server.shutdown()
            thread.join()


def test_a_dataset_repository_is_read_like_a_folder(hub: str, shard_folder: Path) -> None:
    def key(item: StreamedSample) -> tuple[int, str]:
        return item.position, item.sample.key

    patience = Patience(tries=2, first_wait=0.01)
    shards = ShardSet(f"{hub}/set", patience=patience)
    reference = list(ShardStream(shard_folder, 8, transform=key).batches(3))
    assert list(ShardStream(shards, 8, transform=key).batches(3)) == reference
    with pytest.raises(UserError, match=r"^`shards` \(=hf://datasets/me/pairs/other\) has no manifest.json$"):
        ShardSet(f"{hub}/other", patience=patience)
