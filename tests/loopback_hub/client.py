"""Connects the Hub's client to the loopback Hub, in this process and in new ones."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants, file_download, hf_api
from huggingface_hub.utils import _http

from loopback_hub.server import LoopbackHub

TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


class ConnectedHub(LoopbackHub):
    """A loopback Hub, and the state of the client connected to it.

    Attributes:
        home: the client's HF_HOME, empty at first.
        cache: the client's cache.
        waits: seconds the client would have waited before each retry; it does not wait, to keep tests fast.
    """

    def __init__(self, home: Path) -> None:
        super().__init__()
        self.home = home
        self.cache = home / "hub"
        self.waits: list[float] = []

    def log_in(self, token: str) -> None:
        """Store a token where the client looks for it."""
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / "token").write_text(token)

    def log_out(self) -> None:
        (self.home / "token").unlink(missing_ok=True)

    @contextmanager
    def offline(self) -> Iterator[None]:
        """Set HF_HUB_OFFLINE=1 in the block, so that the client uses its cache only."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(constants, "HF_HUB_OFFLINE", True)
            patch.setenv("HF_HUB_OFFLINE", "1")
            close_sessions()
            yield
        close_sessions()

    def cached(self) -> dict[str, bytes]:
        """Return the contents of the cache's snapshots, by repository, commit and path."""
        files = {}
        for path in sorted(self.cache.glob("models--*/snapshots/*/**/*")):
            if path.is_file():
                files[str(path.relative_to(self.cache))] = path.read_bytes()
        return files

    def env(self, home: Path | None = None, token: str | None = None) -> dict[str, str]:
        """Return the environment for a process that uses this Hub; its retries do wait.

        Args:
            home: its HF_HOME. Default: this process's.
            token: stored there.
        """
        home = home or self.home
        if token is not None:
            home.mkdir(parents=True, exist_ok=True)
            (home / "token").write_text(token)
        clean = {name: value for name, value in os.environ.items() if name not in TOKEN_VARIABLES}
        return {**clean, **variables(self.url, home)}


def variables(url: str, home: Path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HUGGINGFACE_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_OFFLINE": "0",
        "TRANSFORMERS_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",  # clients from 1.0 on would upload by a protocol that this Hub does not support
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


def close_sessions() -> None:
    """Close the client's connections; new ones use the current settings."""
    close = getattr(_http, "close_session", None) or _http.reset_sessions  # the second before 1.0
    close()


@contextmanager
def connect(home: Path) -> Iterator[ConnectedHub]:
    """Start a Hub and connect this process's client to it: huggingface_hub, and so timm and transformers.

    The client reads the environment once, on import, and several modules keep copies of its settings. All loaded
    copies are changed, and restored afterwards.
    """
    url_template = "{repo_id}/resolve/{revision}/{filename}"
    with ConnectedHub(home) as hub, pytest.MonkeyPatch.context() as patch:
        for name, value in variables(hub.url, home).items():
            patch.setenv(name, value)
        for name in TOKEN_VARIABLES:
            patch.delenv(name, raising=False)
        settings = {
            "ENDPOINT": hub.url,
            "HF_ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": f"{hub.url}/{url_template}",
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(hub.cache),
            "HUGGINGFACE_HUB_CACHE": str(hub.cache),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
        }
        for module_name, module in list(sys.modules.items()):
            if module_name.partition(".")[0] in ("huggingface_hub", "timm", "transformers", "datasets"):
                for name, value in settings.items():
                    if name in vars(module):
                        patch.setattr(module, name, value)
        patch.setattr(hf_api.api, "endpoint", hub.url)  # used by the functions that huggingface_hub exports
        patch.setattr(hf_api.api, "token", None)
        quick = SimpleNamespace(**{**vars(time), "sleep": hub.waits.append})
        for module in (_http, file_download):
            patch.setattr(module, "time", quick)
        close_sessions()
        try:
            yield hub
        finally:
            close_sessions()
    close_sessions()


CLIENT_VERSION = tuple(int(part) for part in huggingface_hub.__version__.split(".")[:2])
