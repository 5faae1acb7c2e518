"""A model hub on loopback that speaks the protocol of huggingface_hub's client: create, pre-upload, large files,
commit, and what a download asks for. It keeps repositories in memory and breaks when told to.

    with hub() as server: HF_ENDPOINT=server.endpoint ...

Large files are checked against the sha256 that they are announced under; commits against what was sent.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

WRITER, READER = "hf_" + "w" * 34, "hf_" + "r" * 34
OWNER = "ada"
LARGE = 4096  # bytes from which a file is a large file, beside all *.safetensors


@dataclass
class Repository:
    """Commits oldest first: each an id and the bytes of each file."""

    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def files(self, revision: str) -> dict[str, bytes] | None:
        if revision == "main":
            return self.commits[-1][1]
        return next((files for oid, files in self.commits if oid == revision), None)

    def head(self, revision: str) -> str:
        return self.commits[-1][0] if revision == "main" else revision


@dataclass
class Fault:
    """The next `times` requests whose `METHOD path` matches fail: with a status, or cut off in the middle (0)."""

    pattern: str
    status: int
    times: int = 1


class HubServer(ThreadingHTTPServer):
    """`requests` records `METHOD path` of everything that came."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.lock = threading.Lock()

    def count(self, pattern: str) -> int:
        """How many requests matched."""
        return sum(re.search(pattern, request) is not None for request in self.requests)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that the faults cut off."""


@contextmanager
def hub() -> Iterator[HubServer]:
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def blob_oid(content: bytes) -> str:
    """What git calls a file of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        with self.server.lock:
            self.server.requests.append(request)
            fault = next((f for f in self.server.faults if f.times and re.search(f.pattern, request)), None)
            if fault:
                fault.times -= 1
        if fault and fault.status == 0:
            self.rfile.read(min(512, int(self.headers.get("Content-Length", 0))))
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        length = int(self.headers.get("Content-Length") or 0)
        body = self._chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
        if len(body) < length:
            return
        if fault:
            self.answer({"error": "out of order"}, fault.status)
            return
        with self.server.lock:
            for method, pattern, name in ROUTES:
                if method == self.command and (match := re.fullmatch(pattern, path)):
                    getattr(self, name)(body, *match.groups())
                    return
        self.refuse(404, "EntryNotFound", f"{request} is not served")

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def create(self, body: bytes) -> None:
        wanted = json.loads(body)
        if self.token() not in (WRITER, READER):
            self.refuse(401, "", "Invalid credentials in Authorization header")
            return
        name = f"{wanted.get('organization') or OWNER}/{wanted['name']}"
        if self.token() != WRITER or not name.startswith(f"{OWNER}/"):
            self.refuse(403, "", "You don't have the rights to create a model under this namespace")
            return
        known = name in self.server.repositories
        if not known:
            private = wanted.get("visibility") == "private" or wanted.get("private") is True
            self.server.repositories[name] = Repository(private, [("0" * 40, {})])
        self.answer({"url": f"{self.server.endpoint}/{name}"}, 409 if known else 200)

    def validate(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        front = yaml.safe_load(content.split("---")[1])
        wrong = [] if front.get("license") else [{"message": '"license" is required'}]
        self.answer({"errors": wrong, "warnings": []}, 400 if wrong else 200)

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        repository = self.writable(name)
        if repository is None:
            return
        here = repository.files(revision) or {}
        files = []
        for file in json.loads(body)["files"]:
            large = file["path"].endswith(".safetensors") or file["size"] > LARGE
            known = here.get(file["path"])
            oid = None if known is None else hashlib.sha256(known).hexdigest() if large else blob_oid(known)
            mode = "lfs" if large else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer({"files": files})

    def batch(self, body: bytes, name: str) -> None:
        if self.writable(name) is None:
            return
        objects = []
        for wanted in json.loads(body)["objects"]:
            upload = {"href": f"{self.server.endpoint}/large/{wanted['oid']}"}
            verify = {"href": f"{self.server.endpoint}/verify"}
            actions = {} if wanted["oid"] in self.server.large else {"actions": {"upload": upload, "verify": verify}}
            objects.append({**wanted, **actions})
        self.answer({"transfer": "basic", "objects": objects})

    def put_large(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            self.refuse(400, "", "the bytes do not have this sha256")
            return
        self.server.large[oid] = body
        self.answer({})

    def verify(self, body: bytes) -> None:
        wanted = json.loads(body)
        sound = len(self.server.large.get(wanted["oid"], b"")) == wanted["size"]
        self.answer({}, 200 if sound else 404)

    def commit(self, body: bytes, name: str, revision: str) -> None:
        repository = self.writable(name)
        if repository is None:
            return
        files = dict(repository.files(revision) or {})
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
        oid = hashlib.sha1(body + str(len(repository.commits)).encode()).hexdigest()
        repository.commits.append((oid, files))
        self.answer({"commitUrl": f"{self.server.endpoint}/{name}/commit/{oid}", "commitOid": oid})

    def info(self, body: bytes, name: str, revision: str = "main") -> None:
        files = self.readable(name, revision)
        if files is not None:
            repository = self.server.repositories[name]
            siblings = [{"rfilename": path} for path in files]
            values = {"id": name, "modelId": name, "private": repository.private, "tags": [], "siblings": siblings}
            self.answer(values | {"sha": repository.head(revision)})

    def tree(self, body: bytes, name: str, revision: str) -> None:
        files = self.readable(name, revision)
        if files is not None:
            self.answer([self.entry(path, content) for path, content in files.items()])

    def entry(self, path: str, content: bytes) -> dict[str, object]:
        entry: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": blob_oid(content)}
        if path.endswith(".safetensors"):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return entry

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        files = self.readable(name, revision)
        if files is None:
            return
        if path not in files:
            self.refuse(404, "EntryNotFound", "no such file")
            return
        content = files[path]
        large = path.endswith(".safetensors")
        tag = hashlib.sha256(content).hexdigest() if large else blob_oid(content)
        commit = self.server.repositories[name].head(revision)
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{tag}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[start:])

    def readable(self, name: str, revision: str) -> dict[str, bytes] | None:
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and self.token() not in (WRITER, READER)):
            self.refuse(404 if self.token() else 401, "RepoNotFound", "Repository not found")
            return None
        files = repository.files(revision)
        if files is None:
            self.refuse(404, "RevisionNotFound", "Invalid rev id")
        return files

    def writable(self, name: str) -> Repository | None:
        if self.token() == WRITER and name in self.server.repositories:
            return self.server.repositories[name]
        self.refuse(403, "", "Forbidden: you may not write here")
        return None

    def token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ").strip()

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.answer({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})

    def answer(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        fixed = {"Content-Type": "application/json", "Content-Length": str(len(content))}
        for name, text in {**fixed, **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Tests read `requests`."""


_NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    ("POST", "/api/repos/create", "create"),
    ("POST", "/api/validate-yaml", "validate"),
    ("POST", f"/api/models/{_NAME}/preupload/([^/]+)", "preupload"),
    ("POST", f"/api/models/{_NAME}/commit/([^/]+)", "commit"),
    ("POST", f"/{_NAME}.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/large/([0-9a-f]{64})", "put_large"),
    ("POST", "/verify", "verify"),
    ("GET", f"/api/models/{_NAME}", "info"),
    ("GET", f"/api/models/{_NAME}/revision/([^/]+)", "info"),
    ("GET", f"/api/models/{_NAME}/tree/([^/]+)/?", "tree"),
    ("HEAD", f"/{_NAME}/resolve/([^/]+)/(.+)", "resolve"),
    ("GET", f"/{_NAME}/resolve/([^/]+)/(.+)", "resolve"),
]
