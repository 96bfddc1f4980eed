"""Requests, answers, and the routes from one to the other."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote


@dataclass
class Request:
    """A request as it was received, kept for tests.

    Attributes:
        server: ``hub`` or ``storage``.
        path: as it was sent, percent-encoded.
        headers: by lower-case name, including the authorization.
        status: of the answer; 0 if none was sent.
    """

    server: str
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes = b""
    status: int = 0

    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    @property
    def token(self) -> str | None:
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None


@dataclass
class Answer:
    """An answer before it is sent: a value to send as JSON, or bytes. Files support range requests."""

    status: int = 200
    value: Any = None
    content: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    is_file: bool = False

    def body(self) -> bytes:
        if self.content is not None:
            return self.content
        return b"" if self.value is None else json.dumps(self.value).encode()


ROUTES: list[tuple[str, str, re.Pattern, Callable[..., Answer]]] = []
REPO = r"(?P<repo>[^/]+/[^/]+)"
REVISION = r"(?P<revision>[^/]+)"


def route(methods: str, path: str, server: str = "hub") -> Callable[[Callable], Callable]:
    """Register a function that answers requests; the path's groups become its arguments, unquoted."""

    def register(function: Callable[..., Answer]) -> Callable[..., Answer]:
        ROUTES.extend((server, method, re.compile(path), function) for method in methods.split())
        return function

    return register


def find_route(request: Request) -> tuple[Callable[..., Answer], dict[str, str]] | None:
    for server, method, path, function in ROUTES:
        # A HEAD is answered like a GET, but without its body.
        if server == request.server and method == request.method.replace("HEAD", "GET"):
            match = path.fullmatch(request.path)
            if match:
                return function, {name: unquote(value or "") for name, value in match.groupdict().items()}
    return None
