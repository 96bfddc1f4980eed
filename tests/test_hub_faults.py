"""Failing downloads end in a successful retry or a clear error, and leave no damaged file in the cache."""

import errno
import logging
import os
import re

import pytest
import torch
from contract import assert_same, images, plain_example, small
from huggingface_hub import constants, file_download, hf_hub_download, snapshot_download
from loopback_hub import DOWNLOAD, Fault
from loopback_hub.client import CLIENT_VERSION
from safetensors.torch import save

REPO = "timm/resnet18.a1_in1k"
BEFORE_1 = CLIENT_VERSION < (1, 0)


@pytest.fixture
def weights(hub):
    content = save(plain_example("resnet18_fdconv").state_dict())
    hub.add_repo(REPO, {"model.safetensors": content})
    yield content
    # After every test, the cached files are equal to the Hub's.
    assert set(hub.cached().values()) <= {content}
    assert not hub.unknown


def load(revision=""):
    overlay = dict(num_classes=11, hf_hub_id=REPO + revision)
    return small("resnet18_fdconv.a1_in1k", pretrained=True, pretrained_cfg_overlay=overlay).eval()


def assert_loads():
    x, plain = images(), plain_example("resnet18_fdconv")
    with torch.no_grad():
        assert_same(load()(x), plain(x))


def error_of_load(revision="") -> str:
    with pytest.raises(RuntimeError, match=r"pretrained_cfg_overlay=dict\(file=.*pretrained=False") as error:
        load(revision)
    assert REPO in str(error.value)
    return str(error.value)


def test_server_errors_are_retried(hub, weights):
    fault = hub.fail(Fault.server_error(503), times=3)
    assert_loads()
    assert fault.hits == 3
    assert hub.waits == ([1, 2, 4] if BEFORE_1 else [1, 2])


def test_permanent_server_error(hub, weights):
    hub.fail(Fault.server_error(502), times=None)
    message = error_of_load()
    assert "answered with status 502: try again later" in message
    hub.heal()
    assert_loads()


def test_broken_storage(hub, weights):
    """Clients before 1.0 retry after an error of the storage; newer ones leave it to the caller."""
    hub.fail(Fault.server_error(500).on("GET", DOWNLOAD))
    if not BEFORE_1:
        message = error_of_load()
        assert "/cdn/" in message
        assert "answered with status 500: try again later" in message
        assert "X-Signature" not in message
    assert_loads()


@pytest.mark.parametrize("path", ["/resolve/", DOWNLOAD])
def test_rate_limit(hub, weights, path):
    hub.fail(Fault.rate_limited(retry_after=7).on(path=path), times=2)
    if BEFORE_1:  # gives up at once
        assert "try again" in error_of_load()
        hub.heal()
    assert_loads()
    assert BEFORE_1 or 8 in hub.waits  # what the Hub asked for, plus one second


def test_connection_cut_in_a_file(hub, weights, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.fail(Fault.cut_download(after=50_000))
    if BEFORE_1:  # keeps the partial file for the next attempt
        assert "connection broke: try again" in error_of_load()
        assert not hub.cached()
    assert_loads()
    assert hub.requests[-1].headers["range"] == "bytes=50000-"
    assert hub.requests[-1].status == 206


def test_connection_cut_permanently(hub, weights):
    hub.fail(Fault.cut_download(after=1000), times=None)
    assert "connection broke: try again" in error_of_load()
    assert not hub.cached()
    hub.heal()
    assert_loads()


def test_slow_answers(hub, weights, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    faults = [hub.fail(Fault.slow(0.5).on("HEAD")), hub.fail(Fault.slow(0.5).on("GET"))]
    assert_loads()
    assert all(fault.hits for fault in faults)


def test_truncated_file(hub, weights):
    hub.fail(Fault.truncated_file(missing=100))
    assert "arrived incomplete: try again" in error_of_load()
    assert not hub.cached()
    assert_loads()


@pytest.mark.parametrize("offset", [20, -1], ids=["in the header", "in a weight"])
def test_wrong_content(hub, weights, offset):
    hub.fail(Fault.wrong_content(offset))
    assert "model.safetensors arrived damaged and was removed from the cache" in error_of_load()
    assert not list(hub.cache.rglob("blobs/*"))
    assert_loads()


def test_the_client_itself_does_not_detect_wrong_content(hub, weights):
    """If this fails, the client checks hashes itself, and fdconv_zoo.store.cache no longer needs to."""
    hub.fail(Fault.wrong_content())
    path = hf_hub_download(REPO, "model.safetensors")
    with open(path, "rb") as file:
        assert file.read() != weights
    os.unlink(os.path.realpath(path))
    os.unlink(path)


def test_a_cached_file_is_not_hashed_again(hub, weights, monkeypatch):
    assert_loads()
    monkeypatch.setattr("fdconv_zoo.store.cache.CachedFile.has_hash", lambda *_: pytest.fail("hashed again"))
    assert_loads()
    with hub.offline():
        assert_loads()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
def test_cache_that_cannot_be_written(hub, weights, monkeypatch, number):
    class FullDisk:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, content):
            self.file.write(content[:1000])
            raise OSError(number, os.strerror(number))

    http_get = file_download.http_get
    with monkeypatch.context() as patch:
        patch.setattr(file_download, "http_get", lambda url, file, **kwargs: http_get(url, FullDisk(file), **kwargs))
        message = error_of_load()
    assert f"the cache {hub.cache} cannot be written ({os.strerror(number)}): make room" in message
    assert not hub.cached()
    assert_loads()


REFUSALS = {
    "missing": "does not exist, or is private: check its name",
    "private": "does not exist, or is private: .*log in with `hf auth login`",
    "of others": "does not exist, or is private: .*a token that may read it",
    "gated": "ask for access on http://127.0.0.1:.*/timm/resnet18.a1_in1k and log in",
    "not granted": "ask for access on",
    "wrong token": "rejected your token as invalid or expired: renew it with `hf auth login`",
    "expired token": "rejected your token as invalid or expired",
    "no weights": r"it has no pytorch_model\.bin at revision 'main': .* model\.safetensors or pytorch_model\.bin",
    "no revision": "has no revision 'v9': check its branches and tags",
    "down": r"not in the cache .*, and http://127\.0\.0\.1:\d+ cannot be reached: connect and try again",
    "offline": "not in the cache .*/hub, and offline mode is on: unset HF_HUB_OFFLINE",
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_explain_why(hub, weights, case, caplog):
    caplog.set_level(logging.DEBUG)
    for name in ("huggingface_hub", "huggingface_hub.file_download", "huggingface_hub.utils._http"):
        caplog.set_level(logging.DEBUG, logger=name)
    token = hub.add_user("eve")
    if case in ("of others", "not granted", "no weights", "down", "expired token"):
        hub.log_in(token)
    if case == "missing":
        hub.repos.clear()
    elif case in ("private", "of others"):
        hub.repos[REPO].private = True
    elif case in ("gated", "not granted"):
        hub.repos[REPO].gated = "auto"
    elif case == "wrong token":
        token = "hf_nobodys"
        hub.log_in(token)
    elif case == "expired token":
        hub.expire(token)
    elif case == "no weights":
        hub.commit(REPO, {"model.safetensors": None})
    elif case == "down":
        hub.stop()
    if case == "offline":
        with hub.offline():
            message = error_of_load()
    else:
        message = error_of_load("@v9" if case == "no revision" else "")
    assert re.search(REFUSALS[case], message), message
    assert ("cannot be reached" in message) is (case == "down")
    assert token not in message
    assert token not in caplog.text
    assert not hub.cached()


def test_files_cannot_leave_the_cache(hub, tmp_path):
    """The Hub has no such file names, but a mirror could."""
    hub.add_repo("eve/model", {"../../../../escaped.txt": b"x", "config.json": b"{}"})
    with pytest.raises(ValueError, match=r"Invalid (filename|pointer path)"):
        snapshot_download("eve/model")
    with pytest.raises(ValueError, match=r"Invalid (filename|pointer path)"):
        hf_hub_download("eve/model", "../../../../escaped.txt")
    assert not list(tmp_path.rglob("escaped.txt"))
