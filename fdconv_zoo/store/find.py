"""Finds where on the Hub a model's weights are."""

from dataclasses import dataclass

import timm

from fdconv_zoo.errors import HubError
from fdconv_zoo.store.names import HUB, HUB_WEIGHTS_FILES, unknown_name


@dataclass(frozen=True)
class Weights:
    """Location of a model's weights.

    Attributes:
        repo_id: Repository on the Hub.
        revision: Branch, tag or commit; None for the main branch.
        choices: Possible names of the weights file, in order of preference.
        with_config: Whether timm also needs the repository's `config.json`, to know the architecture.
    """

    repo_id: str
    revision: str | None
    choices: tuple[str, ...]
    with_config: bool


def find_weights(name: str, revision: str | None = None) -> Weights:
    """Find where a model's weights are, without contacting the Hub.

    Args:
        name: A timm name with or without tag, or `hf-hub:REPOSITORY`, optionally with `@REVISION`.
        revision: Branch, tag or commit of the repository.

    Raises:
        HubError: the model is unknown or has no weights on the Hub, or the revision is invalid.
    """
    if name.startswith(HUB):
        repo_id, _, own_revision = name.removeprefix(HUB).partition("@")
        if own_revision and revision and own_revision != revision:
            raise HubError(f"{name}: --revision says {revision}; name one revision")
        return Weights(repo_id, _checked(own_revision or revision), HUB_WEIGHTS_FILES, with_config=True)

    if problem := unknown_name(name):
        raise HubError(f"{name}: {problem}")
    cfg = timm.get_pretrained_cfg(name)
    if cfg.file:
        raise HubError(f"{name}: nothing to fetch: its weights come with the package, {cfg.file}")
    if not cfg.hf_hub_id:
        raise HubError(f"{name}: has no weights on the Hub")
    file = cfg.hf_hub_filename
    return Weights(cfg.hf_hub_id, _checked(revision), (file,) if file else HUB_WEIGHTS_FILES, with_config=False)


def _checked(revision: str | None) -> str | None:
    """Check that a revision does not point outside the cache, since the client uses it as part of a path."""
    if revision and (".." in revision.split("/") or revision.startswith("/") or "\\" in revision):
        raise HubError(f"{revision}: not a valid revision")
    return revision or None
