"""Answers to downloads: redirects with a file's metadata, and the files themselves."""

from typing import TYPE_CHECKING
from urllib.parse import quote

from loopback_hub.access import RefusedError
from loopback_hub.message import REPO, REVISION, Answer, Request, route
from loopback_hub.repos import find_commit

if TYPE_CHECKING:
    from loopback_hub.server import LoopbackHub


@route("GET", rf"/{REPO}/resolve/{REVISION}/(?P<path>.+)")
def resolve(hub: "LoopbackHub", request: Request, repo: str, revision: str, path: str) -> Answer:
    """Redirect a small file to a path of the Hub itself, a large one to a signed URL of the storage."""
    found = hub.readable(repo, request, content=True)
    commit = find_commit(found, revision)
    headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
    blob = commit.files.get(path)
    if blob is None:
        # With the commit, so that the client remembers that it has no such file.
        raise RefusedError(404, "Entry not found", "EntryNotFound", **headers)
    # No X-Xet-Hash and no xet link: with one, the client would fetch the file by another protocol.
    headers |= {"X-Linked-Size": str(blob.size), "X-Linked-Etag": f'"{blob.etag}"', "ETag": f'"{blob.etag}"'}
    if blob.sha256:
        address = hub.storage_address(f"/cdn/{found.id}/{blob.sha256}")
        return Answer(302, headers={**headers, "Location": address})
    return Answer(
        307, headers={**headers, "Location": f"/api/resolve-cache/models/{found.id}/{commit.oid}/{quote(path)}"}
    )


@route("GET", rf"/api/resolve-cache/models/{REPO}/{REVISION}/(?P<path>.+)")
def resolve_cache(hub: "LoopbackHub", request: Request, repo: str, revision: str, path: str) -> Answer:
    found = hub.readable(repo, request, content=True)
    blob = find_commit(found, revision).files[path]
    headers = {"X-Repo-Commit": revision, "ETag": f'"{blob.etag}"'}
    return Answer(content=blob.content, headers=headers, is_file=True)


@route("GET", rf"/cdn/{REPO}/(?P<sha256>[0-9a-f]+)", server="storage")
def download(hub: "LoopbackHub", request: Request, repo: str, sha256: str) -> Answer:
    hub.check_signature(request)
    return Answer(content=hub.repos[repo].large[sha256], headers={"ETag": f'"{sha256}"'}, is_file=True)
