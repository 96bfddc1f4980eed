"""The server: two ports of 127.0.0.1, one for the Hub and one for the storage it redirects to."""

import contextlib
import hashlib
import hmac
import re
import secrets
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

from loopback_hub.access import RefusedError, User, check_content, check_read
from loopback_hub.faults import Fault
from loopback_hub.message import Answer, Request, find_route
from loopback_hub.store import GITATTRIBUTES, Blob, Commit, Repo
from loopback_hub.uploads import LARGE_SUFFIXES


class LoopbackHub:
    """A Hub for model repositories that supports the requests of `huggingface_hub` 0.27 to 2.x, over plain HTTP.

    It does not support xet, the chunked transfer that the Hub and its clients prefer, because the server side is not
    public. Clients from 1.0 on upload by xet without asking, so set ``HF_HUB_DISABLE_XET=1``.

    Attributes:
        url: the endpoint.
        storage_url: URL of large files, on another port: to clients another host, which must not see their tokens.
        repos: by id, e.g. ``user/model``.
        requests: all requests received, in order.
        unknown: requests that no route answers; they get a 404.
        part_size: size in bytes of the parts in which large files are uploaded; None for a single part.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.users: dict[str, User] = {}  # by token
        self.expired: set[str] = set()
        self.uploads: dict[tuple[str, str, int], bytes] = {}
        self.requests: list[Request] = []
        self.unknown: list[Request] = []
        self.part_size: int | None = None
        self.stopping = threading.Event()
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._secret = secrets.token_bytes(16)
        self._servers = {name: _Server(name, self) for name in ("hub", "storage")}
        self.url, self.storage_url = (f"http://127.0.0.1:{s.server_port}" for s in self._servers.values())

    def start(self) -> "LoopbackHub":
        for server in self._servers.values():
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def stop(self) -> None:
        """Refuse connections from now on. Can be called twice; the Hub cannot be restarted."""
        if self.stopping.is_set():
            return
        self.stopping.set()
        for server in self._servers.values():
            server.shutdown()
            server.server_close()
            server.close_connections()

    def __enter__(self) -> "LoopbackHub":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # For tests.

    def add_user(self, name: str, *, orgs: tuple[str, ...] = (), role: str = "write") -> str:
        """Create a user, or another token for one, and return the token."""
        token = f"hf_{secrets.token_hex(17)}"
        self.users[token] = User(name, orgs, role)
        return token

    def expire(self, token: str) -> None:
        self.expired.add(token)

    def add_repo(
        self, repo_id: str, files: Mapping[str, bytes] | None = None, *, private: bool = False, gated: bool = False
    ) -> Repo:
        """Create a repository as if its owner had uploaded the files in one commit."""
        repo = self.repos[repo_id] = Repo(repo_id, private=private, gated="auto" if gated else False)
        initial = {".gitattributes": Blob(GITATTRIBUTES)}
        repo.add(initial, "initial commit", author=repo.owner, parent=None, ref="main")
        if files:
            self.commit(repo_id, files)
        return repo

    def commit(self, repo_id: str, files: Mapping[str, bytes | None], *, branch: str = "main") -> Commit:
        """Change files of a repository; None deletes a file."""
        repo = self.repos[repo_id]
        parent = repo.find(branch)
        changed = dict(parent.files)
        for path, content in files.items():
            if content is None:
                del changed[path]
            elif path.endswith(LARGE_SUFFIXES):
                sha256 = hashlib.sha256(content).hexdigest()
                repo.large[sha256] = content
                changed[path] = Blob.pointer(sha256, len(content))
            else:
                changed[path] = Blob(content)
        return repo.add(changed, "Upload files", author=repo.owner, parent=parent, ref=branch)

    def read(self, repo_id: str, path: str, revision: str = "main") -> bytes:
        """Return the content of a file."""
        repo = self.repos[repo_id]
        blob = repo.find(revision).files[path]
        return repo.large[blob.sha256] if blob.sha256 else blob.content

    def files(self, repo_id: str, revision: str = "main") -> set[str]:
        """Return the paths of a revision, without the file that every repository starts with."""
        return set(self.repos[repo_id].find(revision).files) - {".gitattributes"}

    def fail(self, fault: Fault, times: int | None = 1) -> Fault:
        """Inject a fault into the next matching requests; the returned fault counts its hits."""
        armed = replace(fault, times=times, hits=0)
        self._faults.append(armed)
        return armed

    def heal(self) -> None:
        """Remove all faults."""
        self._faults.clear()

    # For answers.

    def user(self, request: Request) -> User | None:
        if request.token is None:
            return None
        user = self.users.get(request.token)
        if user is None or request.token in self.expired:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return user

    def readable(self, repo_id: str, request: Request, *, content: bool = False) -> Repo:
        user = self.user(request)
        repo = check_read(self.repos.get(repo_id), user)
        if content:
            check_content(repo, user)
        return repo

    def storage_address(self, path: str) -> str:
        return f"{self.storage_url}{path}?X-Signature={self._sign(path)}"

    def check_signature(self, request: Request) -> None:
        if "authorization" in request.headers:
            raise RefusedError(400, "Only one auth mechanism allowed")  # as S3 says
        if not hmac.compare_digest(request.query.get("X-Signature", ""), self._sign(request.path)):
            raise RefusedError(403, "SignatureDoesNotMatch")

    def _sign(self, path: str) -> str:
        return hmac.new(self._secret, path.encode(), "sha256").hexdigest()

    def take_fault(self, request: Request) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                spent = fault.times is not None and fault.hits >= fault.times
                fits = fault.method in (None, request.method) and re.search(fault.path, request.path)
                if fits and not spent:
                    fault.hits += 1
                    return fault
        return None

    def log(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)

    def answer(self, request: Request) -> Answer:
        found = find_route(request)
        if found is None:
            self.unknown.append(request)
            return Answer(404, {"error": "Not Found"})
        function, arguments = found
        try:
            if request.server == "hub":
                self.user(request)  # refuse an invalid token even if none is needed
            with self._lock:
                return function(self, request, **arguments)
        except RefusedError as refused:
            return Answer(refused.status, {"error": refused.message}, headers=refused.headers)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # threads of idle connections end when the client closes them

    def __init__(self, name: str, hub: LoopbackHub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name = name
        self.hub = hub
        self.connections: set[socket.socket] = set()

    def close_connections(self) -> None:
        for connection in list(self.connections):
            with contextlib.suppress(OSError):  # the client may have closed it
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """Print no traceback: clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise every small answer waits 40 ms for an acknowledgement
    wbufsize = -1
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def log_message(self, *_: object) -> None:
        pass

    def handle_any(self) -> None:
        address = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = dict(parse_qsl(address.query, keep_blank_values=True))
        request = Request(self.server.name, self.command, address.path, query, headers)
        hub = self.server.hub
        hub.log(request)
        fault = hub.take_fault(request) or Fault()
        if fault.cut_request is not None:
            self.rfile.read(min(fault.cut_request, int(headers.get("content-length", fault.cut_request))))
            return self.cut()
        request.body = self.read_body(headers)
        if fault.delay and hub.stopping.wait(fault.delay):
            return self.cut()
        if fault.status is not None:
            answer = Answer(fault.status, {"error": fault.message}, headers=fault.headers)
        else:
            answer = hub.answer(request)
        content = answer.body()
        if answer.is_file and fault.change:
            content = fault.change(content)
        status, content, extra = self.cut_range(content, headers) if answer.is_file else (answer.status, content, {})
        if fault.cut_answer == -1:
            return self.cut()
        request.status = status
        self.send_response(status)
        kind = "application/octet-stream" if answer.is_file else "application/json; charset=utf-8"
        fixed = {"Content-Type": kind, "Content-Length": str(len(content)), "X-Request-Id": "Root=1-loopback"}
        for name, value in {**fixed, **answer.headers, **extra}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: fault.cut_answer])
        self.wfile.flush()
        if fault.cut_answer is not None:
            self.cut(politely=True)
        return None

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815

    def read_body(self, headers: Mapping[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def cut_range(self, content: bytes, headers: Mapping[str, str]) -> tuple[int, bytes, dict[str, str]]:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
        if not match:
            return 200, content, {"Accept-Ranges": "bytes"}
        first, last = int(match[1]), int(match[2] or len(content) - 1)
        if first >= len(content):
            return 416, b"", {"Content-Range": f"bytes */{len(content)}"}
        part = content[first : last + 1]
        return 206, part, {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(content)}"}

    def cut(self, *, politely: bool = False) -> None:
        """Close the connection: by a reset, or politely, so that what was sent arrives."""
        self.close_connection = True
        if not politely:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
