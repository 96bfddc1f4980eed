"""A Hub on 127.0.0.1 for tests: it speaks the client's protocol of the Hugging Face Hub, and injects faults.

    with LoopbackHub() as hub:
        token = hub.add_user("ada")
        hub.add_repo("ada/model", {"config.json": b"{}", "model.safetensors": weights}, private=True)
        hub.fail(Fault.cut_download(after=1000), times=2)

The fixture `hub` in conftest.py starts one and connects this process's client to it; `hub.env(folder)` is the
environment for another process.
"""

from loopback_hub import files  # noqa: F401  registers its routes, as uploads and repos do
from loopback_hub.client import ConnectedHub, connect
from loopback_hub.faults import DOWNLOAD, UPLOAD, Fault
from loopback_hub.message import Request
from loopback_hub.server import LoopbackHub

__all__ = ["DOWNLOAD", "UPLOAD", "ConnectedHub", "Fault", "LoopbackHub", "Request", "connect"]
