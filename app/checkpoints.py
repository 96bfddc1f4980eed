"""Lists and loads the models that the app offers."""

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

PACKAGED = "resnet10s_fdconv.fashion_mnist"  # the only model whose weights are in the package

_KEPT = 2  # models in memory: the largest take 1.2 GB
_PATIENCE = 5  # seconds to wait for the Hub's answer
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A classifier with its weights.

    Attributes:
        name: Name in the app.
        model: The model, in eval mode.
        classes: Class names; empty for a model without a classifier.
        preprocessing: Arguments of `timm.data.create_transform`.
        transform: Turns an image into the model's input (C, H, W).
    """

    name: str
    model: nn.Module
    classes: Sequence[str]
    preprocessing: dict[str, Any]
    transform: Callable[[Image.Image], Tensor]


class Checkpoints:
    """The packaged model, models of the index with weights on the Hub, and models named at the start of the app.

    Args:
        own: Models, as `fdconv-zoo predict --model` takes them, such as the output folders of runs. They are loaded at
            once, so that errors appear at the start, and are shown by the last part of their names.

    Raises:
        UserError: a model of `own` cannot be loaded, has no FDConv layers, or is not a classifier; or two models have
            the same name.
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
        """Names of all models: first `own`, then the packaged one, then the others."""
        return [*self._sources]

    def load(self, name: str) -> Checkpoint:
        """Load a model. The last `_KEPT` models stay in memory.

        Raises:
            ConfigError: there is no such model.
            HubError: its weights could not be downloaded. The message reveals nothing about this machine; the log has
                the reason.
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

    The client would retry for a minute, and other visitors would have to wait.

    Raises:
        HubError: the weights are not in the cache, and the Hub cannot be reached.
    """
    repo_id = find_weights(source).repo_id
    if constants.HF_HUB_OFFLINE or any(True for _ in cached_files(repo_id)):
        return
    with explained(repo_id):
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE)


def load_checkpoint(name: str, source: str) -> Checkpoint:
    """Load a classifier with FDConv layers.

    Args:
        name: Name of the checkpoint.
        source: Any name of timm, `hf-hub:NAME`, or a folder.

    Raises:
        UserError: it cannot be loaded, has no FDConv layers, or is not a classifier.
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
    """Return the last part of a name, so that visitors see no folders of this machine."""
    return Path(source).expanduser().resolve().name if Path(source).expanduser().is_dir() else source.split("/")[-1]
