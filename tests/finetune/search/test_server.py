"""The server over real connections: answers as the searcher's, refusals in JSON, a crowd, and its end."""

import http.client
import io
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from PIL import Image

from finetune.search import server as module
from finetune.search.batcher import Batcher, Busy
from finetune.search.query import Query, Searcher
from finetune.search.server import SearchServer
from finetune.search.upload import uploaded_picture
from shards.errors import UserError
from tests.finetune.search.conftest import PICTURES
from tests.ranks import environment

USERS, EACH = 100, 4


@contextmanager
def running(searcher):
    with Batcher(searcher) as batcher, SearchServer("127.0.0.1", 0, searcher, batcher) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def server(indexed):
    with running(Searcher.open(indexed)) as server:
        yield server


def request(server, path, method="GET", body=None, headers=None):
    """Status, content type and body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.headers["Content-Type"], response.read()
    finally:
        connection.close()


def get(server, path, **rest):
    status, kind, content = request(server, path, **rest)
    assert kind == "application/json"
    return status, json.loads(content)


def png(size, **options):
    target = io.BytesIO()
    Image.new("RGB", size, "red").save(target, "PNG", **options)
    return target.getvalue()


def test_answers_are_the_searchers(server, searcher, pictures):
    status, found = get(server, "/api/search?q=a+red%20kite&k=3&rerank=20")
    expected = searcher.search([Query("a red kite", k=3, rerank=20)])[0].hits
    assert status == 200
    assert [(hit["row"], hit["key"], hit["caption"]) for hit in found["hits"]] == [
        (hit.row, hit.key, hit.caption) for hit in expected
    ]
    assert found["hits"][0]["match"] == pytest.approx(expected[0].match, abs=1e-4)
    picture = (pictures / "image-4.png").read_bytes()
    status, found = get(server, "/api/search?k=1", method="POST", body=picture)
    assert (status, found["hits"][0]["key"], round(found["hits"][0]["score"], 3)) == (200, "image-4", 1.0)
    status, found = get(server, "/api/search?k=2&q=two+boat", method="POST", body=picture)
    both = searcher.search([Query("two boat", uploaded_picture(picture), k=2)])[0].hits
    assert [hit["row"] for hit in found["hits"]] == [hit.row for hit in both]


def test_page_pictures_heat_and_info(server, searcher):
    status, kind, page = request(server, "/")
    assert (status, kind) == (200, "text/html; charset=utf-8")
    assert b"http://" not in page, "nothing from elsewhere"
    assert b"https://" not in page
    status, kind, thumbnail = request(server, "/pictures/7.jpg")
    assert (status, kind, thumbnail) == (200, "image/jpeg", searcher.index.thumbnail(7))
    status, heat = get(server, "/api/heat?q=red+dog&row=7")
    assert (status, heat["how"]) == (200, "token similarity")
    assert [word["word"] for word in heat["words"]] == ["red", "dog"]
    status, info = get(server, "/api/info")
    assert (info["pictures"], info["rerank"], info["heat"]) == (PICTURES, True, "token similarity")


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/api/search?q=", 400, "must have a text, a picture or both"),
        ("/api/search?q=a&k=0", 400, "`k` (=0) must be at least 1"),
        ("/api/search?q=a&k=101", 400, "`k` (=101) must be a whole number up to 100"),
        ("/api/search?q=a&k=-1", 400, "`k` (=-1) must be a whole number"),
        ("/api/search?q=a&rerank=5", 400, "`rerank` (=5) must be 0 (off) or at least `k` (=24)"),
        ("/api/search?q=" + "x" * 1001, 400, "1,000 characters at most, not 1,001"),
        ("/api/search?q=a&" + "&".join(f"x{i}=1" for i in range(9)), 400, "eight at most"),
        ("/api/search?" + "x" * 70000, 414, ""),
        ("/api/heat?q=a&row=40", 404, "there is no picture `40`; there are 40"),
        ("/api/heat?q=&row=4", 400, "`q` must be a text"),
        ("/pictures/-1.jpg", 404, "there is no picture `-1`"),
        ("/pictures/../index.json.jpg", 404, "there is no picture"),
        ("/index.json", 404, "there is nothing at /index.json"),
    ],
)
def test_refused(server, path, status, message):
    found, answer = get(server, path)
    assert (found, list(answer)) == (status, ["error"])
    assert message in answer["error"]


def bomb():
    """A PNG of 200 bytes that claims 30,000 x 30,000 pixels."""
    header = b"IHDR" + (30000).to_bytes(4) * 2 + b"\x08\x02\x00\x00\x00"
    chunks = [header, b"IDAT" + zlib.compress(b""), b"IEND"]
    packed = [(len(c) - 4).to_bytes(4) + c + zlib.crc32(c).to_bytes(4) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (bomb(), 400, "pixels"),
        (png((8000, 7000)), 400, "8,000 x 7,000 pixels, more than 50,000,000"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 400, "no picture that can be read: JPEG, PNG"),
        (b"", 400, "no picture"),
        (png((32, 32))[:60], 422, "cannot be decoded"),
        (b"\xff" * ((10 << 20) + 1), 413, "10 MiB at most"),
    ],
)
def test_uploads_refused(server, body, status, message):
    found, answer = get(server, "/api/search", method="POST", body=body)
    assert found == status
    assert message in answer["error"]
    assert get(server, "/api/search?q=dog")[0] == 200


def test_other_misuse(server):
    assert get(server, "/", method="DELETE")[0] == 501
    assert get(server, "/", headers={"Host": "pictures.example:80"})[0] == 421
    assert request(server, "/", headers={"Host": "localhost:1234"})[0] == 200
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as raw:
        raw.sendall(b"POST /api/search HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 411 " in raw.recv(4096)
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as raw:
        raw.sendall(b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nshort")
    assert get(server, "/api/search?q=dog")[0] == 200, "one that leaves harms nobody"


def test_a_slow_upload_is_ended(indexed, monkeypatch):
    monkeypatch.setattr(module.Handler, "timeout", 0.2)
    searcher = Searcher.open(indexed)
    with running(searcher) as server, socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as raw:
        raw.sendall(b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nslow")
        assert b" 408 " in raw.recv(4096)


def test_a_hundred_users_at_once(server, pictures):
    """All connect together and ask over a kept connection: texts, re-ranked texts, pictures and heat maps."""
    picture, start = (pictures / "image-4.png").read_bytes(), threading.Barrier(USERS)

    def user(number):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
        start.wait(60)
        statuses = []
        for turn in range(EACH):
            kind = (number + turn) % 4
            path = ["/api/search?q=a+red+dog&k=5", "/api/search?q=two+boat&k=5&rerank=10", "/api/search?k=5"][kind % 3]
            path = "/api/heat?q=a+dog&row=3" if kind == 3 else path
            method, body = ("POST", picture) if kind == 2 else ("GET", None)
            connection.request(method, path, body)
            response = connection.getresponse()
            answer = json.loads(response.read())
            statuses.append((response.status, "error" in answer))
        connection.close()
        return statuses

    with ThreadPoolExecutor(USERS) as users:
        found = [status for statuses in users.map(user, range(USERS)) for status in statuses]
    assert found == [(200, False)] * (USERS * EACH)


class Held:
    """A searcher that waits to be let go, and knows how many queries came together."""

    def __init__(self):
        self.go, self.started, self.together = threading.Event(), threading.Event(), []

    def search(self, queries):
        self.started.set()
        assert self.go.wait(60)
        self.together.append([query.text for query in queries])
        if "bad" in self.together[-1]:
            raise UserError("bad is refused")
        return [query.text.upper() for query in queries]


def test_what_waits_is_answered_together_and_one_bad_query_alone():
    held = Held()
    with Batcher(held) as batcher, ThreadPoolExecutor(8) as users:
        first = users.submit(batcher.ask, Query("first"), 60)
        assert held.started.wait(60)
        rest = [users.submit(batcher.ask, Query(text), 60) for text in ("a", "bad", "b")]
        while batcher._waiting.qsize() < 3:
            time.sleep(0.001)
        held.go.set()
        assert first.result(60) == "FIRST"
        assert [rest[0].result(60), rest[2].result(60)] == ["A", "B"]
        with pytest.raises(UserError, match="bad is refused"):
            rest[1].result(60)
    assert held.together[0] == ["first"]
    assert sorted(held.together[1]) == ["a", "b", "bad"]


def test_too_many_waiting_is_said_at_once(monkeypatch):
    monkeypatch.setattr("finetune.search.batcher.MOST_WAITING", 2)
    held = Held()
    with Batcher(held) as batcher:
        batcher._put(_job("first"))
        assert held.started.wait(60)
        for text in ("a", "b"):
            batcher._put(_job(text))
        with pytest.raises(Busy, match="2 queries wait already"):
            batcher.ask(Query("c"), 60)
        held.go.set()


def _job(text):
    from finetune.search.batcher import _Job

    return _Job(Query(text))


def test_connections_are_bounded(indexed, monkeypatch):
    monkeypatch.setattr(module, "MOST_CONNECTIONS", 2)
    with running(Searcher.open(indexed)) as server:
        held = [socket.create_connection(("127.0.0.1", server.server_port), timeout=30) for _ in range(2)]
        for one in held:
            one.sendall(b"GET /api/info HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in one.recv(4096)
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as refused:
            assert b" 503 " in refused.recv(4096)
        for one in held:
            one.close()


def test_the_command_serves_and_ends_at_a_signal(indexed):
    command = [sys.executable, "-m", "finetune.cli", "serve", str(indexed), "--port", "0"]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            line = process.stdout.readline()
            assert f"serving {indexed} at http://127.0.0.1:" in line
            port = int(line.split("127.0.0.1:")[1].split()[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/search?q=a+dog&k=2", timeout=60) as response:
                assert len(json.loads(response.read())["hits"]) == 2
            with pytest.raises(UserError, match=rf"127.0.0.1:{port}\) cannot be listened on: address already in use"):
                SearchServer("127.0.0.1", port, *_unstarted(indexed))
            process.terminate()
            assert process.wait(60) == 0
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()


def _unstarted(indexed):
    searcher = Searcher.open(indexed)
    return searcher, Batcher(searcher)
