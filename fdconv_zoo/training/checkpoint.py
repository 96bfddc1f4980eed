"""Checkpoints: everything a run needs to go on as if it had never been stopped."""

import dataclasses
import json
from pathlib import Path

from accelerate import Accelerator
from safetensors.torch import load_model, save_model
from timm.utils import ModelEmaV3

from fdconv_zoo.store.files import remove, replacing

KEPT = 2  # the newest, and the one before it


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
        with replacing(folder / f"update-{progress.update:09d}") as temporary:
            accelerator.save_state(str(temporary))
            if ema is not None:
                save_model(ema.module, str(temporary / "ema.safetensors"))
            (temporary / "progress.json").write_text(json.dumps(dataclasses.asdict(progress)), encoding="utf-8")
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
    """List the complete checkpoints in `folder`, oldest first."""
    return sorted(folder.glob("update-*"))
