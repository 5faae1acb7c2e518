"""`finetune serve`: a local page over an index, on the standard library's threading HTTP server.

    GET  /                                the page
    GET  /api/info                        what is searched, and what the checkpoint can do
    GET  /api/search?q=&k=&rerank=        answers a text
    POST /api/search?q=&k=&rerank=        the same with a picture as the body
    GET  /api/heat?q=&row=                where in a picture each word is
    GET  /pictures/ROW.jpg                a thumbnail

Errors are `{"error": "one sentence"}` with a status that says whose fault it is. Handlers only parse; the model belongs
to `batcher.py`'s thread.
"""

import json
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from finetune.pages import render
from finetune.search.batcher import Batcher, Busy
from finetune.search.heat import HOW, grid_side, word_heat
from finetune.search.query import Query, Searcher
from finetune.search.upload import MOST_BYTES, uploaded_picture
from shards.errors import DamagedSample, UserError

MOST_TEXT, MOST_HITS, MOST_RERANKED = 1000, 100, 500
MOST_CONNECTIONS, IDLE_SECONDS, ANSWER_SECONDS = 256, 30, 60
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
FULL = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\nRetry-After: 1\r\n\r\n"


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class SearchServer(ThreadingHTTPServer):
    """Serves one index.

    Raises:
        UserError: an address that cannot be had.
    """

    daemon_threads = True
    request_queue_size = 256  # many users may connect in the same instant

    def __init__(self, host: str, port: int, searcher: Searcher, batcher: Batcher) -> None:
        self.searcher, self.batcher = searcher, batcher
        self.grid = grid_side(searcher.encoder)
        self.page = _page(searcher).encode()
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), Handler)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UserError(f"`host` and `port` (={host}:{port}) cannot be listened on: {reason}") from None
        self.loopback = is_loopback(host)

    @property
    def address(self) -> str:
        """Where a browser finds it; has the port that was had where 0 was asked for."""
        host, port = self.server_address[:2]
        return f"http://[{host!s}]:{port}" if ":" in str(host) else f"http://{host!s}:{port}"

    def server_bind(self) -> None:
        """Without the standard library's look-up of this machine's name, which waits where there is no DNS."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            request.sendall(FULL)
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away is no error of ours."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: SearchServer
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        self._respond(self._get)

    def do_POST(self) -> None:
        self._respond(self._post)

    def _respond(self, answer: Any) -> None:
        try:
            self._check_host()
            answer(urlsplit(self.path))
        except Refused as error:
            self._error(error.status, str(error))
        except UserError as error:
            self._error(HTTPStatus.BAD_REQUEST, str(error))
        except DamagedSample as error:
            self._error(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        except Busy as error:
            self._error(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        except TimeoutError:
            self._error(HTTPStatus.SERVICE_UNAVAILABLE, f"no answer within {ANSWER_SECONDS} seconds; try again")
        except ConnectionError:
            self.close_connection = True
        except Exception:
            traceback.print_exc()
            self._error(HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed at this request; its log says where")

    def _get(self, url: Any) -> None:
        match url.path:
            case "/":
                self._send(self.server.page, "text/html; charset=utf-8", {"Content-Security-Policy": POLICY})
            case "/api/info":
                self._json(self._info())
            case "/api/search":
                self._search(_fields(url.query), None)
            case "/api/heat":
                self._heat(_fields(url.query))
            case path if path.startswith("/pictures/") and path.endswith(".jpg"):
                row = self._row(path.removeprefix("/pictures/").removesuffix(".jpg"))
                self._send(self.server.searcher.index.thumbnail(row), "image/jpeg", {"Cache-Control": "max-age=3600"})
            case path:
                raise Refused(HTTPStatus.NOT_FOUND, f"there is nothing at {path[:100]}")

    def _post(self, url: Any) -> None:
        body = self._body()  # first, or its bytes would be taken for the next request
        if url.path != "/api/search":
            raise Refused(HTTPStatus.NOT_FOUND, f"nothing is posted to {url.path[:100]}")
        self._search(_fields(url.query), body)

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self.close_connection = True
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "an upload must say its Content-Length")
        try:
            if int(length) > MOST_BYTES:
                self._discard(int(length))
                raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a picture may have {MOST_BYTES >> 20} MiB at most")
            body = self.rfile.read(int(length))
        except TimeoutError:
            self.close_connection = True
            raise Refused(HTTPStatus.REQUEST_TIMEOUT, f"the upload paused for {IDLE_SECONDS} seconds") from None
        if len(body) < int(length):
            raise ConnectionError("the upload ended early")
        return body

    def _discard(self, length: int) -> None:
        """A client that is still sending reads no answer, so a little is read for it."""
        self.close_connection = True
        left = min(length, 4 * MOST_BYTES)
        while left > 0 and (read := len(self.rfile.read(min(left, 1 << 16)))):
            left -= read

    def _search(self, fields: dict[str, str], body: bytes | None) -> None:
        query = Query(
            text=_text(fields),
            picture=None if body is None else uploaded_picture(body),
            k=_number(fields, "k", 24, MOST_HITS),
            rerank=_number(fields, "rerank", 0, MOST_RERANKED),
        )
        self.server.searcher.check(query)
        answer = self.server.batcher.ask(query, ANSWER_SECONDS)
        self._json({"milliseconds": answer.milliseconds, "hits": [asdict(hit) for hit in answer.hits]})

    def _heat(self, fields: dict[str, str]) -> None:
        text, row, side = _text(fields), self._row(fields.get("row", "")), self.server.grid
        if not text.strip():
            raise Refused(HTTPStatus.BAD_REQUEST, "`q` must be a text")
        if side is None:
            raise Refused(HTTPStatus.BAD_REQUEST, "the tokens of this image encoder are no grid in the shared space")
        words = self.server.batcher.run(lambda s: word_heat(s.encoder, text, s.encoded([row]), side), ANSWER_SECONDS)
        self._json({"how": HOW, "words": [asdict(word) for word in words]})

    def _row(self, text: str) -> int:
        images = self.server.searcher.index.facts.images
        if not (text.isascii() and text.isdecimal()) or len(text) > 12 or int(text) >= images:
            raise Refused(HTTPStatus.NOT_FOUND, f"there is no picture `{text[:20]}`; there are {images:,}")
        return int(text)

    def _info(self) -> dict[str, Any]:
        facts, encoder = self.server.searcher.index.facts, self.server.searcher.encoder
        return {
            "pictures": facts.images,
            "kind": facts.kind,
            "checkpoint": facts.checkpoint.model_dump(include={"digest", "name", "step"}),
            "rerank": encoder.matches,
            "heat": HOW if self.server.grid else None,
        }

    def _check_host(self) -> None:
        """A page of another site must not reach a loopback server under its own name (DNS rebinding)."""
        name = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        if self.server.loopback and name != "localhost" and not is_loopback(name):
            self.close_connection = True
            raise Refused(HTTPStatus.MISDIRECTED_REQUEST, "this server answers to localhost alone")

    def _json(self, value: Any) -> None:
        self._send(json.dumps(value).encode(), "application/json", {"Cache-Control": "no-store"})

    def _error(self, status: HTTPStatus, message: str) -> None:
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            self.close_connection = True
        self._send(json.dumps({"error": message}).encode(), "application/json", {}, status)

    def _send(self, content: bytes, kind: str, headers: dict[str, str], status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        fixed = {"Content-Type": kind, "Content-Length": str(len(content)), "X-Content-Type-Options": "nosniff"}
        closing = {"Connection": "close"} if self.close_connection else {}
        for name, value in {**fixed, **headers, **closing}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library refuses by itself (methods, endless lines) is JSON too."""
        self.close_connection = True
        self._error(HTTPStatus(code), message or HTTPStatus(code).phrase)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: queries are the users' own."""

    def version_string(self) -> str:
        return "duostream"


def serve(searcher: Searcher, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serves until KeyboardInterrupt.

    Args:
        ready: Called with the address when connections are accepted.
    """
    searcher.warm_up()
    with Batcher(searcher) as batcher, SearchServer(host, port, searcher, batcher) as server:
        ready(server.address)
        server.serve_forever()


def is_loopback(name: str) -> bool:
    """Whether `name` is an address of this machine alone."""
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def _page(searcher: Searcher) -> str:
    facts = searcher.index.facts
    return render(
        "search.html", facts=facts, most_text=MOST_TEXT, rerank=searcher.encoder.matches, most_bytes=MOST_BYTES
    )


def _fields(query: str) -> dict[str, str]:
    try:
        fields = parse_qs(query, strict_parsing=bool(query), max_num_fields=8)
    except ValueError:
        raise Refused(HTTPStatus.BAD_REQUEST, "the query string must be name=value pairs, eight at most") from None
    return {name: values[-1] for name, values in fields.items()}


def _text(fields: dict[str, str]) -> str:
    text = fields.get("q", "")
    if len(text) > MOST_TEXT:
        raise Refused(HTTPStatus.BAD_REQUEST, f"a text may have {MOST_TEXT:,} characters at most, not {len(text):,}")
    return text


def _number(fields: dict[str, str], name: str, default: int, most: int) -> int:
    text = fields.get(name, str(default))
    if not (text.isascii() and text.isdecimal()) or len(text) > 9 or int(text) > most:
        raise Refused(HTTPStatus.BAD_REQUEST, f"`{name}` (={text[:20]}) must be a whole number up to {most}")
    return int(text)
