"""A trained model as a folder that `timm.create_model('local-dir:...', pretrained=True)` loads."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.models import save_for_hf
from torch import nn

from fdconv_zoo.training.files import TEMPORARY_PREFIX, explaining_write_errors, flush_to_disk, remove

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
    temporary = folder / f"{TEMPORARY_PREFIX}export"
    remove(temporary)
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
        with explaining_write_errors(folder / FILES[0]):
            save_for_hf(
                model,
                temporary,
                model_config={"label_names": list(class_names)} if class_names else {},
                model_args=dict(model_args),
                safe_serialization=True,
            )
            _remove_repeated_classes(temporary / FILES[1])
            flush_to_disk(temporary)
            for name in FILES:
                os.replace(temporary / name, folder / name)
    finally:
        model.pretrained_cfg = described
        remove(temporary)


def _remove_repeated_classes(config: Path) -> None:
    """timm 1.0.31 writes their number among the model's arguments, too; there transformers 5 fails at it."""
    content = json.loads(config.read_text(encoding="utf-8"))
    if content.get("model_args", {}).pop("num_classes", None) is not None:
        config.write_text(json.dumps(content, indent=2), encoding="utf-8")
