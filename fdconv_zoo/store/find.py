"""From the name of a model to the files that hold its weights."""

from dataclasses import dataclass

import timm

from fdconv_zoo.errors import HubError
from fdconv_zoo.store.names import unknown_name

HUB = "hf-hub:"
CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # which timm tries, in this order


@dataclass(frozen=True)
class Weights:
    """Where a model's weights are.

    Attributes:
        repo_id: Repository on the Hub.
        revision: Branch, tag or commit; None for the main branch.
        choices: Names that the weights can have there, the preferred one first.
        with_config: timm also needs the repository's `config.json`: it is what says which model it is.
    """

    repo_id: str
    revision: str | None
    choices: tuple[str, ...]
    with_config: bool


def find_weights(name: str, revision: str | None = None) -> Weights:
    """Find where a model's weights are; the Hub is not asked.

    Args:
        name: A timm name with or without tag, or `hf-hub:REPOSITORY`, also with `@REVISION`.
        revision: Of the repository.

    Raises:
        HubError: no such model, it has no weights on the Hub, or the revision is not one.
    """
    if name.startswith(HUB):
        repo_id, _, own_revision = name.removeprefix(HUB).partition("@")
        if own_revision and revision and own_revision != revision:
            raise HubError(f"{name}: --revision says {revision}; name one revision")
        return Weights(repo_id, _checked(own_revision or revision), WEIGHTS, with_config=True)

    if problem := unknown_name(name):
        raise HubError(f"{name}: {problem}")
    cfg = timm.get_pretrained_cfg(name)
    if cfg.file:
        raise HubError(f"{name}: nothing to fetch: its weights come with the package, {cfg.file}")
    if not cfg.hf_hub_id:
        raise HubError(f"{name}: has no weights on the Hub")
    file = cfg.hf_hub_filename
    return Weights(cfg.hf_hub_id, _checked(revision), (file,) if file else WEIGHTS, with_config=False)


def _checked(revision: str | None) -> str | None:
    """The client makes a path of the cache from a revision: one that leads out of it is refused."""
    if revision and (".." in revision.split("/") or revision.startswith("/") or "\\" in revision):
        raise HubError(f"{revision}: not a revision")
    return revision or None
