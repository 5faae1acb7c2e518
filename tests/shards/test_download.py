"""Lists of addresses: every form gives the same rows; the real img2dataset against a server on this machine."""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.download import download, url_rows
from shards.errors import Stopped, UserError
from shards.reader import ShardSet
from shards.verify import verify
from tests.shards.conftest import png

ROWS = [("a red dog", "http://x/1"), ('he said "no"', "http://x/2")]


def test_every_form_gives_the_same_rows(tmp_path: Path) -> None:
    captions, urls = ([row[i] for row in ROWS] for i in (0, 1))
    (tmp_path / "cc3m.tsv").write_text("".join(f"{caption}\t{url}\n" for caption, url in ROWS))
    (tmp_path / "cc12m.tsv").write_text("".join(f"{url}\t{caption}\n" for caption, url in ROWS))
    (tmp_path / "sbu.json").write_text(json.dumps({"image_urls": urls, "captions": captions}))
    (tmp_path / "table.csv").write_text('URL,TEXT\nhttp://x/1,a red dog\nhttp://x/2,"he said ""no"""\n')
    pq.write_table(pa.table({"TEXT": captions, "URL": urls, "other": [1, 2]}), tmp_path / "table.parquet")
    for name in ("cc3m.tsv", "cc12m.tsv", "sbu.json", "table.csv", "table.parquet"):
        assert list(url_rows(tmp_path / name, "URL", "TEXT")) == ROWS, name


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "cc.tsv").write_text("a\thttp://x/1\n")
    with pytest.raises(UserError, match=r"`program` \(=img3dataset\) must be the program img2dataset: pip install"):
        download(tmp_path / "cc.tsv", tmp_path / "out", program="img3dataset")
    with pytest.raises(UserError, match=r"`urls` .* must be a file"):
        download(tmp_path / "none.tsv", tmp_path / "out", program="true")
    (tmp_path / "empty.csv").write_text("url,caption\n")
    with pytest.raises(UserError, match="must hold at least one address"):
        download(tmp_path / "empty.csv", tmp_path / "out", program="true")
    assert not (tmp_path / "out").exists()
    with pytest.raises(Stopped, match="img2dataset ended with status 1; the same command goes on"):
        download(tmp_path / "cc.tsv", tmp_path / "out", program="false")


class Site(BaseHTTPRequestHandler):
    """/N is an image, /missing is not there, /page is a page."""

    def do_GET(self) -> None:
        name = self.path.strip("/")
        body = png(int(name), 30 + int(name), 20) if name.isdigit() else b"<html>sorry</html>"
        self.send_response(404 if name == "missing" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_img2dataset_fetches_and_the_result_is_a_shard_set(site: str, tmp_path: Path) -> None:
    program = os.environ.get("DUOSTREAM_IMG2DATASET") or shutil.which("img2dataset")
    if not program:
        pytest.skip("img2dataset is not installed, and DUOSTREAM_IMG2DATASET names no program")
    names = ["1", "2", "missing", "3", "page", "4", "5"]
    (tmp_path / "cc.tsv").write_text("".join(f"caption {name}\t{site}/{name}\n" for name in names))
    out = tmp_path / "out"
    result = download(tmp_path / "cc.tsv", out, samples_per_shard=3, program=program)
    shards = ShardSet(out)
    read = sorted((shards[i].captions[0], shards[i].image) for i in range(len(shards)))
    assert read == [(f"caption {i}", png(i, 30 + i, 20)) for i in range(1, 6)]
    assert (result.faults, len(result.manifest.shards)) == ((), 3)
    assert result.manifest.filtered is not None
    assert result.manifest.filtered.rejected == {"image_unreadable": 1}
    assert shards[0].metadata["url"].startswith(site)
    assert verify(out).ok
    before = {path: path.read_bytes() for path in out.glob("*.tar")}
    download(tmp_path / "cc.tsv", out, samples_per_shard=3, program=program)
    assert {path: path.read_bytes() for path in out.glob("*.tar")} == before
