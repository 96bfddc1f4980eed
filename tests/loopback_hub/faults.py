"""What can go wrong between a client and a Hub, to be asked for one by one."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

# Where the content of files travels: the storage's download and upload, and the Hub's own small files.
DOWNLOAD = r"^/(cdn|api/resolve-cache)/"
UPLOAD = r"^/upload/"


@dataclass
class Fault:
    """One kind of trouble. The class methods make the usual ones; `LoopbackHub.fail` arms it.

    Attributes:
        method, path: of the requests it strikes; the path is a regular expression to search for.
        status, message, headers: answered in place of the right answer.
        cut_request: read so many bytes of the request's body, then break the connection.
        cut_answer: send so many bytes of the answer's body, then break the connection.
        delay: seconds before the answer begins.
        change: done to the content of a file on its way to the client.
        times: how often it still strikes; None without end.
        hits: how often it struck.
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
        """The Hub does what it was asked to do, and the connection breaks before it can say so."""
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
        """A file arrives shorter than its metadata say, and the transfer ends as if it were whole."""
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
        """A token stops being valid between two requests; `LoopbackHub.expire` makes it so for good."""
        message = "Invalid credentials in Authorization header"
        return cls(status=401, message=message, headers={"X-Error-Message": message})

    def on(self, method: str | None = None, path: str | None = None) -> "Fault":
        """The same trouble for other requests, e.g. ``Fault.server_error().on("POST", "/commit/")``."""
        return replace(self, method=method or self.method, path=self.path if path is None else path)
