"""Checkpoints: the state from which a run continues as if it had not been stopped."""

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
    """Progress of a run. With the configuration, it determines the learning rate and all random numbers.

    Attributes:
        epoch: Epochs completed.
        step: Batches of each process in the current epoch so far; in a checkpoint, these are always whole updates.
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
    """Write a checkpoint to `folder` atomically, and remove all but the newest two.

    Every process must call this function. Only the main process writes, because under data parallelism all processes
    have the same state. The states of random generators need not be saved, because every step is seeded.
    """
    if accelerator.is_main_process:
        checkpoint = folder / f"update-{progress.update:09d}"
        with replacing(checkpoint) as temporary:
            accelerator.save_state(str(temporary))
            if ema is not None:
                save_model(ema.module, str(temporary / "ema.safetensors"))
            (temporary / "progress.json").write_text(json.dumps(dataclasses.asdict(progress)), encoding="utf-8")
            (temporary / CHECKSUMS).write_text(json.dumps(_checksums(temporary), indent=2), encoding="utf-8")
            remove(checkpoint)  # left by a run that ended between this update and the evaluation
        for old in list_checkpoints(folder)[:-KEPT]:
            remove(old)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, ema: ModelEmaV3 | None) -> Progress:
    """Load a checkpoint into the objects prepared by `accelerator`, and into `ema`. Every process must call this."""
    accelerator.load_state(str(checkpoint))
    if ema is not None:
        load_model(ema.module, str(checkpoint / "ema.safetensors"))
    return Progress(**json.loads((checkpoint / "progress.json").read_text(encoding="utf-8")))


def list_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in `folder` that have a file of checksums, oldest first. Their content is not verified."""
    return [found for found in named_checkpoints(folder) if (found / CHECKSUMS).is_file()]


def named_checkpoints(folder: Path) -> list[Path]:
    """List everything in `folder` that is named like a checkpoint, oldest first."""
    return sorted(found for found in folder.glob("update-*") if _NAME.fullmatch(found.name))


def find_damage(checkpoint: Path) -> str:
    """Compare a checkpoint's files with the checksums that were stored when it was written.

    Returns:
        A description of the damage; empty if the checkpoint is intact.
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
