"""Pointing the Hub's client at the loopback Hub: in this process, and in one to be started."""

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
    """A loopback Hub, and the state of the client that talks to it.

    Attributes:
        home: the client's HF_HOME, empty at first.
        cache: the client's cache.
        waits: seconds the client would have waited before its retries; it does not, so that tests are short.
    """

    def __init__(self, home: Path) -> None:
        super().__init__()
        self.home = home
        self.cache = home / "hub"
        self.waits: list[float] = []

    def log_in(self, token: str) -> None:
        """Keep a token where the client looks for one."""
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / "token").write_text(token)

    def log_out(self) -> None:
        (self.home / "token").unlink(missing_ok=True)

    @contextmanager
    def offline(self) -> Iterator[None]:
        """As with HF_HUB_OFFLINE=1: the client may use nothing but its cache."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(constants, "HF_HUB_OFFLINE", True)
            patch.setenv("HF_HUB_OFFLINE", "1")
            close_sessions()
            yield
        close_sessions()

    def cached(self) -> dict[str, bytes]:
        """What the cache holds under good names: the snapshots' files, by repository, commit and path."""
        files = {}
        for path in sorted(self.cache.glob("models--*/snapshots/*/**/*")):
            if path.is_file():
                files[str(path.relative_to(self.cache))] = path.read_bytes()
        return files

    def env(self, home: Path | None = None, token: str | None = None) -> dict[str, str]:
        """The environment for a process that talks to this Hub; retries wait as long as they say.

        Args:
            home: its HF_HOME; by default the one of this process.
            token: kept there.
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
        "HF_HUB_DISABLE_XET": "1",  # else a client of 1.0 or newer uploads by a protocol this Hub does not speak
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


def close_sessions() -> None:
    """End the client's connections; new ones heed the settings of now."""
    close = getattr(_http, "close_session", None) or _http.reset_sessions  # the second before 1.0
    close()


@contextmanager
def connect(home: Path) -> Iterator[ConnectedHub]:
    """Start a Hub and point this process's client at it: huggingface_hub's, and so timm's and transformers'.

    The client reads the environment once, when it is imported, and copies of what it read lie in several modules: all
    that are loaded are changed, and restored afterwards.
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
        patch.setattr(hf_api.api, "endpoint", hub.url)  # of the functions that huggingface_hub exports
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
