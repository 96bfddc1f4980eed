"""A trained model as a folder that `timm.create_model('local-dir:...', pretrained=True)` loads."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from timm.models import save_for_hf
from torch import nn

from fdconv_zoo.store.files import TEMPORARY_PREFIX, explaining_write_errors, flush_to_disk, remove

FILES = ("model.safetensors", "config.json")


def export_model(
    model: nn.Module,
    folder: Path,
    *,
    class_names: Sequence[str] | None,
    preprocessing: Mapping[str, Any],
    model_args: Mapping[str, Any],
) -> None:
    """Write `model.safetensors` and `config.json`, each whole or not at all.

    Args:
        model: A timm model.
        folder: Where they go; other files in it are left alone.
        class_names: One a class, in the classifier's order; None where nobody knows them.
        preprocessing: What the images went through, as `resolve_preprocessing` gives it.
        model_args: Arguments that build this architecture again.

    Raises:
        WriteError: they could not be written.
    """
    described = model.pretrained_cfg
    # What no longer holds of the source checkpoint: how it was loaded, tested, and its classes numbered.
    model.pretrained_cfg = {
        **described,
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
        model.pretrained_cfg = described


@contextmanager
def replacing_model(folder: Path) -> Iterator[Path]:
    """Yield a folder to save a model in; its `model.safetensors` and `config.json` take the place of those in `folder`.

    Other files are left alone, those saved and those there.

    Raises:
        WriteError: they could not be written.
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
    """timm's ``save_for_hf``, as safetensors, with a configuration that transformers takes, too.

    Args:
        model: A timm model.
        folder: Made where there is none.
        **kwargs: Of ``save_for_hf``.
    """
    save_for_hf(model, folder, safe_serialization=True, **kwargs)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # It stands at the top already; transformers (5.23) fails where it is told twice.
    config.get("model_args", {}).pop("num_classes", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
