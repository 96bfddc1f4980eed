"""Answers to uploads: how to send each file, the large file storage, and commits."""

import base64
import hashlib
import json
from math import ceil
from typing import TYPE_CHECKING, Any

from loopback_hub.access import RefusedError, check_write, not_logged_in
from loopback_hub.message import REPO, REVISION, Answer, Request, route
from loopback_hub.repos import API, find_commit, open_discussion
from loopback_hub.store import Blob, Commit, Repo

if TYPE_CHECKING:
    from loopback_hub.server import LoopbackHub

LARGE_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".zip", ".gz", ".parquet", ".h5")
LARGE_SIZE = 10_000_000  # files from this size on are large


@route("POST", f"{API}/preupload/{REVISION}")
def preupload(hub: "LoopbackHub", request: Request, repo: str, revision: str) -> Answer:
    found = may_commit(hub, request, repo)
    commit = find_commit(found, revision)
    files = []
    for file in request.json()["files"]:
        large = file["path"].endswith(LARGE_SUFFIXES) or file["size"] >= LARGE_SIZE
        known = commit.files.get(file["path"])
        described = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        # The hash lets the client skip files that have not changed.
        files.append({**described, "oid": known.etag} if known else described)
    return Answer(value={"files": files, "commitOid": commit.oid})


def may_commit(hub: "LoopbackHub", request: Request, repo: str) -> Repo:
    """Check access: whoever can read may open a pull request, but only writers may commit to a branch."""
    found = hub.readable(repo, request)
    user = hub.user(request)
    if user is None:
        raise not_logged_in()
    if "create_pr" not in request.query:
        check_write(found.owner, user)
    return found


@route("POST", rf"/{REPO}\.git/info/lfs/objects/batch")
def lfs_batch(hub: "LoopbackHub", request: Request, repo: str) -> Answer:
    """Tell the client where to send each large file, except those already stored.

    The client may offer the transfer "xet"; the answer never selects it, so the client uses plain HTTP.
    """
    found = hub.readable(repo, request)
    if hub.user(request) is None:
        raise not_logged_in()
    asked = request.json()
    in_parts = hub.part_size is not None and "multipart" in asked["transfers"]
    objects = []
    for file in asked["objects"]:
        entry: dict[str, Any] = {"oid": file["oid"], "size": file["size"]}
        if file["oid"] not in found.large:
            entry["authenticated"] = True
            entry["actions"] = {
                "upload": upload_action(hub, found, file, hub.part_size if in_parts else None),
                "verify": {"href": f"{hub.url}/{found.id}.git/info/lfs/objects/verify"},
            }
        objects.append(entry)
    return Answer(value={"transfer": "multipart" if in_parts else "basic", "objects": objects})


def upload_action(hub: "LoopbackHub", repo: Repo, file: dict[str, Any], part_size: int | None) -> dict[str, Any]:
    path = f"/upload/{repo.id}/{file['oid']}"
    if part_size is None or file["size"] <= part_size:
        return {"href": hub.storage_address(path)}
    parts = range(1, ceil(file["size"] / part_size) + 1)
    header = {"chunk_size": str(part_size)} | {f"{n:05d}": hub.storage_address(f"{path}/{n}") for n in parts}
    return {"href": f"{hub.url}/api/complete_multipart/{repo.id}/{file['oid']}", "header": header}


@route("PUT", rf"/upload/{REPO}/(?P<oid>[0-9a-f]+)(/(?P<part>[0-9]+))?", server="storage")
def upload(hub: "LoopbackHub", request: Request, repo: str, oid: str, part: str) -> Answer:
    hub.check_signature(request)
    hub.uploads[repo, oid, int(part or 0)] = request.body
    return Answer(headers={"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})


@route("POST", rf"/api/complete_multipart/{REPO}/(?P<oid>[0-9a-f]+)")
def complete(hub: "LoopbackHub", request: Request, repo: str, oid: str) -> Answer:
    numbers = [part["partNumber"] for part in request.json()["parts"]]
    parts = [hub.uploads.pop((repo, oid, number)) for number in numbers]
    hub.uploads[repo, oid, 0] = b"".join(parts)
    return Answer(value={})


@route("POST", rf"/{REPO}\.git/info/lfs/objects/verify")
def verify(hub: "LoopbackHub", request: Request, repo: str) -> Answer:
    """Move an upload into the repository's storage if its size and hash are as announced."""
    found = hub.readable(repo, request)
    asked = request.json()
    content = hub.uploads.pop((repo, asked["oid"], 0), None)
    if content is None:
        raise RefusedError(404, f"Object {asked['oid']} was not uploaded")
    if len(content) != asked["size"] or hashlib.sha256(content).hexdigest() != asked["oid"]:
        raise RefusedError(422, f"Object {asked['oid']} arrived damaged: its size or hash differs")
    found.large[asked["oid"]] = content
    return Answer(value={})


@route("POST", f"{API}/commit/{REVISION}")
def commit(hub: "LoopbackHub", request: Request, repo: str, revision: str) -> Answer:
    found = may_commit(hub, request, repo)
    user = hub.user(request)
    lines = [json.loads(line) for line in request.body.splitlines() if line]
    header, changes = lines[0]["value"], lines[1:]
    parent = find_commit(found, revision)
    if header.get("parentCommit") and not parent.oid.startswith(header["parentCommit"]):
        raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
    files = changed_files(found, parent, changes)
    answer = {"success": True, "hookOutput": ""}
    ref = revision
    if "create_pr" in request.query:
        description = header.get("description", "")
        opened = open_discussion(found, user.name, header["summary"], description, revision, pull=True)
        ref = f"refs/pr/{opened.number}"
        answer["pullRequestUrl"] = f"{hub.url}/{found.id}/discussions/{opened.number}"
    elif revision not in found.branches and revision not in found.pull_refs:
        raise RefusedError(400, f"{revision} is not a branch: nothing can be committed to it")
    message = header.get("description", "")
    made = found.add(files, header["summary"], message=message, author=user.name, parent=parent, ref=ref)
    return Answer(value={**answer, "commitOid": made.oid, "commitUrl": f"{hub.url}/{found.id}/commit/{made.oid}"})


def changed_files(repo: Repo, parent: Commit, changes: list[dict[str, Any]]) -> dict[str, Blob]:
    files = dict(parent.files)
    for change in changes:
        value = change["value"]
        path = value["path"]
        if path.startswith("/") or ".." in path.split("/") or ".git" in path.split("/"):
            raise RefusedError(400, f"Invalid path: {path}")
        if change["key"] == "file":
            files[path] = Blob(base64.b64decode(value["content"]))
        elif change["key"] == "lfsFile":
            if value["oid"] not in repo.large:
                raise RefusedError(
                    400,
                    "Your push was rejected because an LFS pointer pointed to a file that does not exist. "
                    f"Offending file: - {path}",
                )
            files[path] = Blob.pointer(value["oid"], len(repo.large[value["oid"]]))
        else:
            inside = f"{path.rstrip('/')}/"
            gone = [p for p in files if p == path or (change["key"] == "deletedFolder" and p.startswith(inside))]
            if not gone:
                raise RefusedError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in gone:
                del files[name]
    return files
