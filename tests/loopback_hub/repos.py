"""Answers about users and repositories: creating, describing, listing, branches, tags and discussions."""

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import yaml

from loopback_hub import cards
from loopback_hub.access import RefusedError, check_read, check_write, not_logged_in
from loopback_hub.message import REPO, REVISION, Answer, Request, route
from loopback_hub.store import GITATTRIBUTES, Blob, Commit, PullRequest, Repo, tree_hash

if TYPE_CHECKING:
    from loopback_hub.server import LoopbackHub

API = rf"/api/models/{REPO}"


def find_commit(repo: Repo, revision: str) -> Commit:
    commit = repo.find(revision)
    if commit is None:
        raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return commit


@route("GET", "/api/whoami-v2")
def whoami(hub: "LoopbackHub", request: Request) -> Answer:
    user = hub.user(request)
    if user is None:
        raise not_logged_in()
    return Answer(value=user.describe())


@route("POST", "/api/repos/create")
def create(hub: "LoopbackHub", request: Request) -> Answer:
    asked = request.json()
    user = hub.user(request)
    namespace = asked.get("organization") or (user.name if user else "")
    user = check_write(namespace, user)
    if asked.get("type", "model") != "model":
        raise RefusedError(400, "The loopback Hub supports models only.")
    repo_id = f"{namespace}/{asked['name']}"
    answer = {"url": f"{hub.url}/{repo_id}", "name": repo_id, "id": f"id-of-{repo_id}"}
    if repo_id in hub.repos:
        return Answer(409, {**answer, "error": "You already created this model repo"})
    # Older clients send `private`, newer ones `visibility`.
    repo = hub.repos[repo_id] = Repo(repo_id, private=asked.get("private") or asked.get("visibility") == "private")
    files = {".gitattributes": Blob(GITATTRIBUTES)}
    repo.add(files, "initial commit", author=user.name, parent=None, ref="main")
    return Answer(value=answer)


@route("DELETE", "/api/repos/delete")
def delete(hub: "LoopbackHub", request: Request) -> Answer:
    asked = request.json()
    user = hub.user(request)
    namespace = asked.get("organization") or (user.name if user else "")
    repo_id = f"{namespace}/{asked['name']}"
    check_read(hub.repos.get(repo_id), user)
    check_write(namespace, user)
    del hub.repos[repo_id]
    return Answer()


@route("PUT", f"{API}/settings")
def settings(hub: "LoopbackHub", request: Request, repo: str) -> Answer:
    found = hub.readable(repo, request)
    check_write(found.owner, hub.user(request))
    asked = request.json()
    if "private" in asked or "visibility" in asked:
        found.private = asked.get("private", asked.get("visibility") == "private")
    found.gated = asked.get("gated", found.gated)
    return Answer(value={"private": found.private, "gated": found.gated})


@route("GET", f"{API}/auth-check(?P<write>/write)?")
def auth_check(hub: "LoopbackHub", request: Request, repo: str, write: str) -> Answer:
    found = hub.readable(repo, request, content=True)
    if write:
        check_write(found.owner, hub.user(request))
    return Answer()


@route("GET", f"{API}(/revision/{REVISION})?")
def info(hub: "LoopbackHub", request: Request, repo: str, revision: str) -> Answer:
    found = hub.readable(repo, request)
    commit = find_commit(found, revision or "main")
    return Answer(value=describe(found, commit, blobs="blobs" in request.query))


@route("GET", "/api/models")
def list_models(hub: "LoopbackHub", request: Request) -> Answer:
    user = hub.user(request)
    visible = [repo for repo in hub.repos.values() if not repo.private or (user and user.owns(repo.owner))]
    author, search = request.query.get("author", ""), request.query.get("search", "")
    chosen = [repo for repo in visible if repo.owner.startswith(author) and search in repo.id]
    return Answer(value=[describe(repo, find_commit(repo, "main"), blobs=False) for repo in chosen])


def describe(repo: Repo, commit: Commit, *, blobs: bool) -> dict[str, Any]:
    siblings = []
    for path, blob in sorted(commit.files.items()):
        sibling: dict[str, Any] = {"rfilename": path}
        if blobs:
            sibling |= {"size": blob.size, "blobId": blob.oid}
            if blob.sha256:
                sibling["lfs"] = {"sha256": blob.sha256, "size": blob.size, "pointerSize": len(blob.content)}
        siblings.append(sibling)
    card = commit.files.get("README.md")
    try:
        data = cards.metadata(card.content.decode()) if card else None
    except yaml.YAMLError:
        data = None
    description = {
        "_id": f"id-of-{repo.id}",
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.owner,
        "sha": commit.oid,
        "lastModified": commit.date,
        "createdAt": repo.history(commit)[-1].date,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": (data or {}).get("tags", []),
        "siblings": siblings,
        "usedStorage": sum(blob.size for blob in commit.files.values()),
    }
    if data:
        description["cardData"] = data
    if (data or {}).get("library_name"):
        description["library_name"] = data["library_name"]
    return description


@route("GET", f"{API}/tree/{REVISION}(/(?P<folder>.*))?")
def tree(hub: "LoopbackHub", request: Request, repo: str, revision: str, folder: str) -> Answer:
    commit = find_commit(hub.readable(repo, request), revision)
    inside = f"{folder}/" if folder else ""
    if folder and not any(path.startswith(inside) for path in commit.files):
        raise RefusedError(404, f"{folder} does not exist on {revision}", "EntryNotFound")
    recursive = request.query.get("recursive", "").lower() in ("true", "1")
    expand = request.query.get("expand", "").lower() in ("true", "1")
    entries: dict[str, dict[str, Any]] = {}
    for path in commit.files:
        if not path.startswith(inside):
            continue
        parts = path.removeprefix(inside).split("/")
        for depth in range(1, len(parts) + 1 if recursive else 2):
            entry = inside + "/".join(parts[:depth])
            entries[entry] = describe_path(commit, entry, expand=expand)
    # A single page: no repository in the tests has 1000 entries.
    return Answer(value=[entries[path] for path in sorted(entries)])


def describe_path(commit: Commit, path: str, *, expand: bool) -> dict[str, Any]:
    if path not in commit.files:
        return {"type": "directory", "path": path, "size": 0, "oid": tree_hash(commit.files, f"{path}/")}
    blob = commit.files[path]
    entry: dict[str, Any] = {"type": "file", "path": path, "size": blob.size, "oid": blob.oid}
    if blob.sha256:
        entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": len(blob.content)}
    if expand:
        entry["lastCommit"] = {"id": commit.oid, "title": commit.title, "date": commit.date}
    return entry


@route("POST", f"{API}/paths-info/{REVISION}")
def paths_info(hub: "LoopbackHub", request: Request, repo: str, revision: str) -> Answer:
    commit = find_commit(hub.readable(repo, request), revision)
    if request.headers.get("content-type", "").startswith("application/json"):
        paths, expand = request.json()["paths"], bool(request.json().get("expand"))
    else:
        form = parse_qs(request.body.decode())
        paths, expand = form.get("paths", []), form.get("expand", ["false"])[0].lower() == "true"
    known = [p for p in paths if p in commit.files or any(path.startswith(f"{p}/") for path in commit.files)]
    return Answer(value=[describe_path(commit, path, expand=expand) for path in known])


@route("GET", f"{API}/refs")
def refs(hub: "LoopbackHub", request: Request, repo: str) -> Answer:
    found = hub.readable(repo, request)

    def listed(refs: dict[str, str], prefix: str) -> list[dict[str, str]]:
        return [{"name": name, "ref": prefix + name, "targetCommit": oid} for name, oid in refs.items()]

    answer = {
        "branches": listed(found.branches, "refs/heads/"),
        "converts": [],
        "tags": listed(found.tags, "refs/tags/"),
    }
    if request.query.get("include_prs"):
        answer["pullRequests"] = listed(found.pull_refs, "")
    return Answer(value=answer)


@route("GET", f"{API}/commits/{REVISION}")
def commits(hub: "LoopbackHub", request: Request, repo: str, revision: str) -> Answer:
    found = hub.readable(repo, request)
    return Answer(
        value=[
            {"id": c.oid, "title": c.title, "message": c.message, "authors": [{"user": c.author}], "date": c.date}
            for c in found.history(find_commit(found, revision))
        ]
    )


@route("POST DELETE", f"{API}/branch/(?P<branch>[^/]+)")
def branch(hub: "LoopbackHub", request: Request, repo: str, branch: str) -> Answer:
    found = hub.readable(repo, request)
    check_write(found.owner, hub.user(request))
    if request.method == "DELETE":
        if branch == "main":
            raise RefusedError(403, "Cannot delete the default branch")
        find_commit(found, branch)
        found.branches.pop(branch, None)
        return Answer()
    if branch in found.branches:
        raise RefusedError(409, f"Reference already exists: refs/heads/{branch}")
    found.branches[branch] = find_commit(found, request.json().get("startingPoint") or "main").oid
    return Answer()


@route("POST DELETE", f"{API}/tag/{REVISION}")
def tag(hub: "LoopbackHub", request: Request, repo: str, revision: str) -> Answer:
    """Create or delete a tag; the path names the commit to tag, or the tag to delete."""
    found = hub.readable(repo, request)
    check_write(found.owner, hub.user(request))
    if request.method == "DELETE":
        if found.tags.pop(revision, None) is None:
            raise RefusedError(404, f"Tag {revision} does not exist", "RevisionNotFound")
        return Answer()
    name = request.json()["tag"]
    commit = find_commit(found, revision)
    if name in found.tags:
        raise RefusedError(409, f"Tag reference already exists: refs/tags/{name}")
    found.tags[name] = commit.oid
    return Answer()


def open_discussion(repo: Repo, author: str, title: str, description: str, base: str, *, pull: bool) -> PullRequest:
    number = len(repo.discussions) + 1
    opened = PullRequest(number, title, description, author, base, is_pull_request=pull)
    repo.discussions[number] = opened
    if pull:
        repo.pull_refs[f"refs/pr/{number}"] = find_commit(repo, base).oid
    return opened


def describe_discussion(repo: Repo, opened: PullRequest) -> dict[str, Any]:
    return {
        "num": opened.number,
        "title": opened.title,
        "status": opened.status,
        "author": {"name": opened.author},
        "createdAt": opened.date,
        "isPullRequest": opened.is_pull_request,
        "repo": {"name": repo.id, "type": "model"},
        "repoOwner": {"name": repo.owner, "isParticipating": True, "type": "user", "isDiscussionAuthor": True},
        "events": [],
        "filesWithConflicts": [],
        "changes": {"base": f"refs/heads/{opened.base}"},
        "diff": "",
    }


@route("GET POST", f"{API}/discussions")
def discussions(hub: "LoopbackHub", request: Request, repo: str) -> Answer:
    found = hub.readable(repo, request)
    if request.method != "POST":
        listed = [describe_discussion(found, opened) for opened in found.discussions.values()]
        return Answer(value={"discussions": listed, "count": len(listed), "start": 0})
    user = hub.user(request)
    if user is None:
        raise not_logged_in()
    asked = request.json()
    pull = bool(asked.get("pullRequest"))
    opened = open_discussion(found, user.name, asked["title"], asked.get("description", ""), "main", pull=pull)
    if pull:
        opened.status = "draft"
    return Answer(value=describe_discussion(found, opened))


@route("GET", f"{API}/discussions/(?P<number>[0-9]+)")
def discussion(hub: "LoopbackHub", request: Request, repo: str, number: str) -> Answer:
    found = hub.readable(repo, request)
    if int(number) not in found.discussions:
        raise RefusedError(404, "Discussion not found")
    return Answer(value=describe_discussion(found, found.discussions[int(number)]))


@route("POST", "/api/(?P<repo>(models/)?[^/]+/[^/]+)/discussions/(?P<number>[0-9]+)/(?P<action>merge|status)")
def change_discussion(hub: "LoopbackHub", request: Request, repo: str, number: str, action: str) -> Answer:
    found = hub.readable(repo.removeprefix("models/"), request)
    user = check_write(found.owner, hub.user(request))
    opened = found.discussions[int(number)]
    if action == "merge":
        head = find_commit(found, f"refs/pr/{number}")
        base = find_commit(found, opened.base)
        files = {**base.files, **head.files}
        found.add(files, f"{opened.title} (#{number})", author=user.name, parent=base, ref=opened.base)
        opened.status = "merged"
        return Answer(value={})
    opened.status = request.json()["status"]
    return Answer(
        value={
            "newStatus": {
                "id": "1",
                "type": "status-change",
                "author": {"name": user.name},
                "createdAt": opened.date,
                "data": {"status": opened.status},
            }
        }
    )


@route("POST", "/api/validate-yaml")
def validate_yaml(hub: "LoopbackHub", request: Request) -> Answer:
    errors, warnings = cards.problems(request.json()["content"])
    value = {"errors": [{"message": e} for e in errors], "warnings": [{"message": w} for w in warnings]}
    return Answer(400 if errors else 200, value)


@route("GET POST", "/api/(telemetry/.*|agent-harnesses)")
def telemetry(hub: "LoopbackHub", request: Request) -> Answer:
    return Answer(value={})
