"""The models that the app offers, and loading them."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_session
from PIL import Image
from timm.data import create_transform
from torch import Tensor, nn

from fdconv_zoo.analysis.report import check_layers
from fdconv_zoo.cli.predict import class_names, load_dense_model
from fdconv_zoo.errors import ConfigError, HubError, UserError
from fdconv_zoo.index import Entry, read_index, timm_name
from fdconv_zoo.store.build import build_model, resolve_preprocessing
from fdconv_zoo.store.cache import cached_files
from fdconv_zoo.store.find import find_weights
from fdconv_zoo.store.hub_errors import explained

PACKAGED = "resnet10s_fdconv.fashion_mnist"  # the one model whose weights need no network

_KEPT = 2  # models in memory: the largest take 1.2 GB
_PATIENCE = 5  # seconds that the Hub has for an answer
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A classifier with its weights.

    Attributes:
        name: As the app offers it.
        model: In eval mode.
        classes: Their names; empty for a model without a classifier.
        preprocessing: As timm's transforms take it.
        transform: Turns an image into (C, H, W), as the model takes it.
    """

    name: str
    model: nn.Module
    classes: Sequence[str]
    preprocessing: dict[str, Any]
    transform: Callable[[Image.Image], Tensor]


class Checkpoints:
    """The packaged model, those of the index with weights on the Hub, and models of the person who starts the app.

    Args:
        own: What `fdconv-zoo predict --model` takes, such as the output folders of runs. They are loaded at once, so
            that what is wrong with them is said at the start, and shown by the last part of their names.

    Raises:
        UserError: a model of `own` cannot be loaded, has no FDConv layers, or is no classifier; or two have one name.
    """

    def __init__(self, own: Sequence[str] = ()) -> None:
        self._sources = {_shown(name): name for name in own}
        if len(self._sources) < len(own):
            raise ConfigError("two models have the same last part of their names: rename one of their folders")
        self._own = {name: load_checkpoint(name, timm_name(source)) for name, source in self._sources.items()}
        entries = offered_entries()
        if clash := self._own.keys() & entries.keys():
            raise ConfigError(f"{clash.pop()} is a model of the index: rename the folder")
        self._sources |= {name: entry.loads_from for name, entry in entries.items()}
        self._load = lru_cache(maxsize=_KEPT)(load_checkpoint)

    @property
    def names(self) -> list[str]:
        """Own models first, then the packaged one, then the others."""
        return [*self._sources]

    def load(self, name: str) -> Checkpoint:
        """Load a model, unless it is one of the last that were loaded.

        Raises:
            HubError: its weights could not be downloaded. The message tells a stranger nothing of this machine; the
                log has the reason.
        """
        if name in self._own:
            return self._own[name]
        if name not in self._sources:
            raise ConfigError(f"{name}: no such checkpoint; choose one of the list")
        try:
            if name != PACKAGED:
                check_hub(self._sources[name])
            return self._load(name, self._sources[name])
        except UserError as error:
            _log.warning("%s", error)
            raise HubError(
                f"The weights of {name} could not be downloaded from the Hugging Face Hub. Try again later, or choose "
                f"{PACKAGED}, which needs no network."
            ) from error


def check_hub(source: str) -> None:
    """Check that weights are in the client's cache, or that the Hub can be reached.

    The client tries for a minute, and other visitors would wait as long.

    Raises:
        HubError: neither is so.
    """
    repo_id = find_weights(source).repo_id
    if constants.HF_HUB_OFFLINE or any(True for _ in cached_files(repo_id)):
        return
    with explained(repo_id):
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE)


def load_checkpoint(name: str, source: str) -> Checkpoint:
    """Load a classifier with FDConv layers.

    Args:
        name: Of the result.
        source: Any name of timm, `hf-hub:NAME`, or a folder.

    Raises:
        UserError: it cannot be loaded, has no FDConv layers, or is no classifier.
    """
    if load_dense_model(source) is not None:
        raise ConfigError(f"{source} is not a classifier: see it with `fdconv-zoo visualize`")
    model, _ = build_model(source)
    check_layers(model.eval(), None)
    preprocessing = resolve_preprocessing(model, use_test_size=True)
    classes = class_names(model, source) if model.num_classes else []
    return Checkpoint(name, model, classes, preprocessing, create_transform(**preprocessing))


def offered_entries() -> dict[str, Entry]:
    """Return the classifiers of the index that have weights, by timm's name: the packaged one first."""
    entries = {entry.model: entry for entry in read_index().values() if entry.task == "classification"}
    names = [name for name, entry in entries.items() if entry.source or entry.hub_id]
    return {name: entries[name] for name in [PACKAGED, *names] if name in entries}


def _shown(source: str) -> str:
    """The last part of a name: visitors see no folders of the machine."""
    return Path(source).expanduser().resolve().name if Path(source).expanduser().is_dir() else source.split("/")[-1]
