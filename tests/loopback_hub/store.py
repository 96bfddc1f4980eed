"""The Hub's storage of a repository: files, trees and commits, with git's hashes."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

# The first commit of every repository holds this file; the Hub's own has more lines.
GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.bin filter=lfs diff=lfs merge=lfs -text\n"


def git_hash(kind: str, content: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest()


@dataclass(frozen=True)
class Blob:
    """A file as git stores it. A large file is a pointer to its content in the large file storage."""

    content: bytes
    sha256: str | None = None
    large_size: int = 0

    @classmethod
    def pointer(cls, sha256: str, size: int) -> "Blob":
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return cls(text.encode(), sha256, size)

    @cached_property
    def oid(self) -> str:
        return git_hash("blob", self.content)

    @property
    def size(self) -> int:
        return len(self.content) if self.sha256 is None else self.large_size

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid


def tree_hash(files: Mapping[str, Blob], folder: str = "") -> str:
    """Compute git's hash of a folder, including its subfolders.

    Args:
        files: of the whole repository, by path.
        folder: path with a trailing slash; empty for the root.
    """
    entries: dict[str, bytes] = {}
    for path, blob in files.items():
        name, slash, _ = path.removeprefix(folder).partition("/")
        if not path.startswith(folder):
            continue
        if slash:
            if name + "/" not in entries:  # git sorts folders as if their names ended in a slash
                entries[name + "/"] = f"40000 {name}\0".encode() + bytes.fromhex(tree_hash(files, f"{folder}{name}/"))
        else:
            entries[name] = f"100644 {name}\0".encode() + bytes.fromhex(blob.oid)
    return git_hash("tree", b"".join(entries[name] for name in sorted(entries)))


@dataclass(frozen=True)
class Commit:
    files: Mapping[str, Blob]
    title: str
    message: str
    author: str
    parent: str | None
    seconds: int

    @cached_property
    def oid(self) -> str:
        who = f"{self.author} <{self.author}@example.com> {self.seconds} +0000"
        parent = f"parent {self.parent}\n" if self.parent else ""
        text = f"tree {tree_hash(self.files)}\n{parent}author {who}\ncommitter {who}\n\n{self.title}\n\n{self.message}"
        return git_hash("commit", text.encode())

    @property
    def date(self) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(self.seconds))


@dataclass
class PullRequest:
    number: int
    title: str
    description: str
    author: str
    base: str
    is_pull_request: bool = True
    status: Literal["draft", "open", "merged", "closed"] = "open"
    date: str = "2025-01-01T00:00:00.000Z"


@dataclass
class Repo:
    id: str
    private: bool = False
    gated: Literal["auto", "manual", False] = False
    granted: set[str] = field(default_factory=set)  # users who were given access to a gated repository
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_refs: dict[str, str] = field(default_factory=dict)
    discussions: dict[int, PullRequest] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)  # the large file storage, by sha256

    @property
    def owner(self) -> str:
        return self.id.partition("/")[0]

    def find(self, revision: str) -> Commit | None:
        """Find the commit of a branch, a tag, a pull request's ref, or a hash of 7 digits or more."""
        for refs in (self.branches, self.tags, self.pull_refs):
            if revision.removeprefix("refs/heads/").removeprefix("refs/tags/") in refs:
                return self.commits[refs[revision.removeprefix("refs/heads/").removeprefix("refs/tags/")]]
        if len(revision) >= 7:
            return next((commit for oid, commit in self.commits.items() if oid.startswith(revision)), None)
        return None

    def add(
        self, files: Mapping[str, Blob], title: str, *, message: str = "", author: str, parent: Commit | None, ref: str
    ) -> Commit:
        """Append a commit and move a branch or a pull request's ref to it."""
        # At least a second later than its parent, so that equal changes in sequence are different commits.
        seconds = int(time.time()) if parent is None else max(int(time.time()), parent.seconds + 1)
        commit = Commit(dict(files), title, message, author, parent and parent.oid, seconds)
        self.commits[commit.oid] = commit
        (self.pull_refs if ref.startswith("refs/pr/") else self.branches)[ref] = commit.oid
        return commit

    def history(self, commit: Commit) -> list[Commit]:
        """Return a commit and its ancestors, newest first."""
        commits = [commit]
        while commits[-1].parent:
            commits.append(self.commits[commits[-1].parent])
        return commits
