"""Who may do what: users, their tokens, private and gated repositories; and the answers to those who may not."""

from dataclasses import dataclass
from typing import Any

from loopback_hub.store import Repo


class RefusedError(Exception):
    """An answer that is an error, in the words and headers of the Hub."""

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
    """The same answer whether a repository is private or does not exist, so that nobody learns which."""
    if user is None:
        # The client takes a 401 for a missing repository by its address only with https; here it needs the code.
        return RefusedError(401, "Invalid username or password.", "RepoNotFound")
    return RefusedError(404, "Repository not found", "RepoNotFound")


def check_read(repo: Repo | None, user: User | None) -> Repo:
    """Refuse those who may not know of a repository."""
    if repo is None or (repo.private and not (user and user.owns(repo.owner))):
        raise no_repo(user)
    return repo


def check_content(repo: Repo, user: User | None) -> None:
    """Refuse those who may know of a gated repository and not read its files."""
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
