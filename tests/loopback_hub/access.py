"""Access control: users and their tokens, private and gated repositories, and refusals."""

from dataclasses import dataclass
from typing import Any

from loopback_hub.store import Repo


class RefusedError(Exception):
    """An error answer, with the Hub's text and headers."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}


@dataclass(frozen=True)
class User:
    name: str
    orgs: tuple[str, ...] = ()
    role: str = "write"  # of the token

    def owns(self, namespace: str) -> bool:
        return namespace == self.name or namespace in self.orgs

    def describe(self) -> dict[str, Any]:
        return {
            "type": "user",
            "id": f"id-of-{self.name}",
            "name": self.name,
            "fullname": self.name.title(),
            "email": f"{self.name}@example.com",
            "orgs": [{"type": "org", "name": org, "roleInOrg": "write"} for org in self.orgs],
            "auth": {"type": "access_token", "accessToken": {"displayName": "tests", "role": self.role}},
        }


def not_logged_in() -> RefusedError:
    return RefusedError(
        401, "Invalid username or password.", **{"WWW-Authenticate": 'Bearer realm="Authentication required"'}
    )


def no_repo(user: User | None) -> RefusedError:
    """Give the same answer for private and for missing repositories, so that it does not reveal which."""
    if user is None:
        # Over https the client recognises a missing repository by status and URL; over http it needs the code.
        return RefusedError(401, "Invalid username or password.", "RepoNotFound")
    return RefusedError(404, "Repository not found", "RepoNotFound")


def check_read(repo: Repo | None, user: User | None) -> Repo:
    """Refuse users who may not see a repository."""
    if repo is None or (repo.private and not (user and user.owns(repo.owner))):
        raise no_repo(user)
    return repo


def check_content(repo: Repo, user: User | None) -> None:
    """Refuse users who may see a gated repository, but not read its files."""
    if not repo.gated or (user and (user.owns(repo.owner) or user.name in repo.granted)):
        return
    if user is None:
        message = f"Access to model {repo.id} is restricted. You must have access to it and be authenticated."
        raise RefusedError(401, f"{message} Please log in.", "GatedRepo")
    raise RefusedError(
        403, f"Access to model {repo.id} is restricted and you are not in the authorized list.", "GatedRepo"
    )


def check_write(namespace: str, user: User | None) -> User:
    if user is None:
        raise not_logged_in()
    if user.role != "write":
        raise RefusedError(403, "Forbidden: you must use a write token to upload to a repository.")
    if not user.owns(namespace):
        raise RefusedError(
            403, f'You don\'t have the rights to create or change a model under the namespace "{namespace}"'
        )
    return user
