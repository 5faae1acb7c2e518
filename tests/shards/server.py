"""An HTTP server on loopback that serves a folder, counts what it sends and misbehaves when told to."""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HTML = b"<!DOCTYPE html><html><body>Please sign in</body></html>"


class Server(ThreadingHTTPServer):
    """Serves `folder`.

    Attributes:
        ranges: Whether parts of files are sent when asked for.
        requests: Number of requests for each file.
        sent: Bytes of content sent of each file.
        delay: Seconds before each answer.
        most: Most requests that were answered at a time.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.ranges = folder, True
        self.requests: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.always: dict[str, str] = {}
        self.retry_after = "0"
        self.delay, self.active, self.most = 0.0, 0, 0
        self.over = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next_fault(self, name: str) -> str:
        with self.lock:
            self.requests[name] += 1
            return self.faults[name].pop(0) if self.faults[name] else self.always.get(name, "")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits for a delayed acknowledgement
    server: Server

    def do_HEAD(self) -> None:
        """Asked by S3's clients before a whole file; behaves."""
        path = self.server.folder / self.path.lstrip("/").partition("?")[0]
        self.send_response(200 if path.is_file() else 404)
        self.send_header("Content-Length", str(path.stat().st_size if path.is_file() else 0))
        self.end_headers()

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.active += 1
            self.server.most = max(self.server.most, self.server.active)
        time.sleep(self.server.delay)
        try:
            self._get()
        finally:
            with self.server.lock:
                self.server.active -= 1

    def _get(self) -> None:
        name = self.path.lstrip("/").partition("?")[0]
        fault = self.server.next_fault(name)
        path = self.server.folder / name
        if fault.isdigit():
            return self._answer(int(fault), b"no", {"Retry-After": self.server.retry_after})
        if not path.is_file():
            return self._answer(404, b"absent")
        content, status, headers = path.read_bytes(), 200, {}
        asked = self.headers.get("Range")
        if asked and self.server.ranges:
            first, last = (int(part) for part in asked.removeprefix("bytes=").split("-"))
            headers = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
            content, status = content[first : last + 1], 206
        with self.server.lock:
            self.server.sent[name] += len(content)
        return self._answer(status, content, headers, fault)

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None, fault: str = "") -> None:
        content = {"html": HTML, "short": content[: len(content) // 2]}.get(fault, content)
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if fault in {"cut", "stall"}:
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            if fault == "stall":
                self.server.over.wait(60)
            self.close_connection = True
            return
        if fault == "drip":
            for byte in content:
                if self.server.over.wait(0.2):
                    return
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    with Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()
