"""Checkpoints: everything a run needs to go on as if it had never been stopped."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path

from accelerate import Accelerator
from safetensors.torch import load_model, save_model
from timm.utils import ModelEmaV3

from fdconv_zoo.store.cache import hash_file
from fdconv_zoo.store.files import remove, replacing

KEPT = 2  # the newest, and the one before it
CHECKSUMS = "checksums.json"  # SHA-256 of the other files, by name
_NAME = re.compile(r"update-\d{9}")


@dataclasses.dataclass
class Progress:
    """How far a run has come. The learning rate and all randomness follow from it and the configuration.

    Attributes:
        epoch: Epochs completed.
        step: Batches of each process so far in the current epoch; in a checkpoint, always whole updates.
        update: Optimizer updates since the start of the run.
        loss_sum: Sum of those batches' losses, averaged over the processes.
        history: The rows of metrics.jsonl.
    """

    epoch: int = 0
    step: int = 0
    update: int = 0
    loss_sum: float = 0.0
    history: list[dict] = dataclasses.field(default_factory=list)


def save_checkpoint(accelerator: Accelerator, folder: Path, progress: Progress, ema: ModelEmaV3 | None) -> None:
    """Write a checkpoint into `folder`, whole or not at all, and remove older ones.

    Every process must call it. The main process writes for all: under data parallelism they hold the same state, and
    random states need not be saved, as every step is seeded.
    """
    if accelerator.is_main_process:
        checkpoint = folder / f"update-{progress.update:09d}"
        with replacing(checkpoint) as temporary:
            accelerator.save_state(str(temporary))
            if ema is not None:
                save_model(ema.module, str(temporary / "ema.safetensors"))
            (temporary / "progress.json").write_text(json.dumps(dataclasses.asdict(progress)), encoding="utf-8")
            (temporary / CHECKSUMS).write_text(json.dumps(_checksums(temporary), indent=2), encoding="utf-8")
            remove(checkpoint)  # of a run that was ended between this update and the epoch's evaluation
        for old in list_checkpoints(folder)[:-KEPT]:
            remove(old)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, ema: ModelEmaV3 | None) -> Progress:
    """Load a checkpoint into what `accelerator` prepared and into `ema`. Every process must call it."""
    accelerator.load_state(str(checkpoint))
    if ema is not None:
        load_model(ema.module, str(checkpoint / "ema.safetensors"))
    return Progress(**json.loads((checkpoint / "progress.json").read_text(encoding="utf-8")))


def list_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in `folder`, oldest first, as far as a look at their names and at their checksums shows."""
    return [found for found in named_checkpoints(folder) if (found / CHECKSUMS).is_file()]


def named_checkpoints(folder: Path) -> list[Path]:
    """List what has the name of a checkpoint in `folder`, oldest first."""
    return sorted(found for found in folder.glob("update-*") if _NAME.fullmatch(found.name))


def find_damage(checkpoint: Path) -> str:
    """Compare a checkpoint's files with the checksums that were taken when it was written.

    Returns:
        What is wrong with it; empty if it is whole.
    """
    if not (checkpoint / CHECKSUMS).is_file():
        return f"{CHECKSUMS} is missing"
    try:
        expected = json.loads((checkpoint / CHECKSUMS).read_text(encoding="utf-8"))
        if not isinstance(expected, dict) or "progress.json" not in expected:
            return f"{CHECKSUMS} is damaged"
        for name, checksum in expected.items():
            if not (checkpoint / name).is_file():
                return f"{name} is missing"
            if _checksum(checkpoint / name) != checksum:
                return f"{name} is not what was written"
    except (OSError, ValueError, RecursionError) as error:
        return str(error)
    return ""


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(found for found in folder.rglob("*") if found.is_file())
    return {file.relative_to(folder).as_posix(): _checksum(file) for file in files}


def _checksum(file: Path) -> str:
    return hash_file(file, hashlib.sha256())
