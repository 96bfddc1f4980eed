"""Faults between a client and a Hub, which tests inject."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

# Paths that transfer the content of files: the storage's downloads and uploads, and the Hub's own small files.
DOWNLOAD = r"^/(cdn|api/resolve-cache)/"
UPLOAD = r"^/upload/"


@dataclass
class Fault:
    """A fault. The class methods make the usual ones; `LoopbackHub.fail` activates one.

    Attributes:
        method, path: requests that it affects; the path is a regular expression to search for.
        status, message, headers: sent instead of the correct answer.
        cut_request: read this many bytes of the request's body, then break the connection.
        cut_answer: send this many bytes of the answer's body, then break the connection; -1 sends no answer.
        delay: seconds before the answer begins.
        change: applied to the content of a file that is sent to the client.
        times: number of requests to affect; None for all.
        hits: number of requests affected so far.
    """

    method: str | None = None
    path: str = ""
    status: int | None = None
    message: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    cut_request: int | None = None
    cut_answer: int | None = None
    delay: float = 0
    change: Callable[[bytes], bytes] | None = None
    times: int | None = 1
    hits: int = 0

    @classmethod
    def cut_download(cls, after: int = 1000) -> "Fault":
        """The connection breaks in the middle of a file."""
        return cls("GET", DOWNLOAD, cut_answer=after)

    @classmethod
    def cut_upload(cls, after: int = 1000) -> "Fault":
        """The connection breaks in the middle of a large file's upload."""
        return cls("PUT", UPLOAD, cut_request=after)

    @classmethod
    def lost_answer(cls) -> "Fault":
        """The Hub carries out the request, but the connection breaks before the answer."""
        return cls(cut_answer=-1)

    @classmethod
    def rate_limited(cls, retry_after: int = 1) -> "Fault":
        headers = {
            "Retry-After": str(retry_after),
            "RateLimit": f'"api";r=0;t={retry_after}',
            "RateLimit-Policy": '"fixed window";"api";q=500;w=300',
        }
        return cls(status=429, message="We had to rate limit you, you hit the quota of requests.", headers=headers)

    @classmethod
    def server_error(cls, status: int = 503) -> "Fault":
        return cls(status=status, message="Internal Error - We're working hard to fix this as soon as possible!")

    @classmethod
    def slow(cls, seconds: float = 1) -> "Fault":
        """The answer begins late."""
        return cls(delay=seconds)

    @classmethod
    def truncated_file(cls, missing: int = 100) -> "Fault":
        """A file arrives shorter than announced, and the transfer ends as if it were complete."""
        return cls("GET", DOWNLOAD, change=lambda content: content[:-missing])

    @classmethod
    def wrong_content(cls, offset: int = -1) -> "Fault":
        """A file of the right size arrives with one byte changed, so that its hash differs."""

        def flip(content: bytes) -> bytes:
            changed = bytearray(content)
            changed[offset] ^= 0xFF
            return bytes(changed)

        return cls("GET", DOWNLOAD, change=flip)

    @classmethod
    def expired_token(cls) -> "Fault":
        """A token is invalid for one request; `LoopbackHub.expire` invalidates it permanently."""
        message = "Invalid credentials in Authorization header"
        return cls(status=401, message=message, headers={"X-Error-Message": message})

    def on(self, method: str | None = None, path: str | None = None) -> "Fault":
        """Return the same fault for other requests, e.g. ``Fault.server_error().on("POST", "/commit/")``."""
        return replace(self, method=method or self.method, path=self.path if path is None else path)
