"""Writes a trained model as a folder that `timm.create_model('local-dir:...', pretrained=True)` loads."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from timm.models._hub import save_for_hf  # timm.models does not export it before 1.0.16
from torch import nn

from fdconv_zoo.store.files import TEMPORARY_PREFIX, explaining_write_errors, flush_to_disk, remove
from fdconv_zoo.store.names import CONFIG_FILE, WEIGHTS_FILE

FILES = (WEIGHTS_FILE, CONFIG_FILE)


def export_model(
    model: nn.Module,
    folder: Path,
    *,
    class_names: Sequence[str] | None,
    preprocessing: Mapping[str, Any],
    model_args: Mapping[str, Any],
) -> None:
    """Write `model.safetensors` and `config.json`, each atomically.

    Args:
        model: A timm model.
        folder: Destination; other files in it are left alone.
        class_names: Names of the classes, in the classifier's order; None if unknown.
        preprocessing: Preprocessing of the images, as `resolve_preprocessing` returns it.
        model_args: Arguments that rebuild this architecture.

    Raises:
        WriteError: the files could not be written.
    """
    source_cfg = model.pretrained_cfg
    # Drop entries that only describe the source weights: their classes, and how they were loaded and tested.
    model.pretrained_cfg = {
        **source_cfg,
        **preprocessing,
        "tag": None,
        "num_classes": model.num_classes,
        "pool_size": None,
        "test_input_size": None,
        "test_crop_pct": None,
        "label_offset": None,
        "custom_load": False,
    }
    try:
        with replacing_model(folder) as temporary:
            save_folder(
                model,
                temporary,
                model_config={"label_names": list(class_names)} if class_names else {},
                model_args=dict(model_args),
            )
    finally:
        model.pretrained_cfg = source_cfg


@contextmanager
def replacing_model(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder to save a model in; its weights and configuration then replace those in `folder`.

    Other files in either folder are ignored.

    Raises:
        WriteError: the files could not be written.
    """
    temporary = folder / f"{TEMPORARY_PREFIX}export"
    remove(temporary)
    try:
        with explaining_write_errors(folder / FILES[0]):
            yield temporary
            flush_to_disk(temporary)
            for name in FILES:
                os.replace(temporary / name, folder / name)
    finally:
        remove(temporary)


def save_folder(model: nn.Module, folder: Path, **kwargs: Any) -> None:
    """Save a model as safetensors with timm's ``save_for_hf``, and a configuration that transformers also accepts.

    Args:
        model: A timm model.
        folder: Created if missing.
        **kwargs: Passed to ``save_for_hf``.
    """
    save_for_hf(model, folder, safe_serialization=True, **kwargs)
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    # It is also at the top level; transformers (5.23) fails if it is given twice.
    config.get("model_args", {}).pop("num_classes", None)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
