"""The training loop that all tasks share."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType, ProjectConfiguration, set_seed
from torch import nn

from fdconv_zoo.errors import ConfigError
from fdconv_zoo.training.batches import TrainingBatches
from fdconv_zoo.training.run_folder import RunFolder
from fdconv_zoo.training.task import Task
from fdconv_zoo.training.termination import Termination
from fdconv_zoo.training.trainer import Trainer

_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def start(args: argparse.Namespace) -> tuple[Accelerator, RunFolder]:
    """Set up devices, processes, random seeds and the output folder from the flags that all tasks share.

    Raises:
        ConfigError: the device does not support `--mixed-precision` or `--cuda-graphs`, `--watch` is set and the
            weights are sharded over the processes, or both `--resume` and `--overwrite` are set.
        RunFolderError: `--output` contains another run or other files, or another run is writing to it.
        WriteError: `--output` cannot be written to.
    """
    try:
        accelerator = Accelerator(
            mixed_precision=args.mixed_precision,
            gradient_accumulation_steps=args.grad_accum,
            log_with=args.log_with,
            project_config=ProjectConfiguration(args.output, logging_dir=str(Path(args.output, "tensorboard"))),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error  # such as bf16 on a GPU that does not support it
    if args.cuda_graphs and accelerator.device.type != "cuda":
        raise ConfigError(f"--cuda-graphs needs a CUDA device, and the run would train on the {accelerator.device}")
    if args.watch and accelerator.distributed_type in _SHARDED:
        raise ConfigError(
            f"--watch measures whole weights, and under {accelerator.distributed_type.value} each process has a part "
            "of them: leave --watch out, or train with data parallelism"
        )
    run = RunFolder(args.output, resume=args.resume, overwrite=args.overwrite)
    if accelerator.is_main_process and run.path.is_dir():
        run.lock()
    set_seed(args.seed)
    return accelerator, run


def fit(
    task: Task,
    model: nn.Module,
    batches: TrainingBatches,
    args: argparse.Namespace,
    facts: Mapping[str, Any],
    *,
    accelerator: Accelerator,
    run: RunFolder,
    termination: Termination,
) -> list[dict[str, Any]]:
    """Train to the last epoch, from the beginning or from the newest checkpoint.

    Args:
        task: The loss, evaluation and export of the model.
        model: The model, on the accelerator's device.
        batches: The training batches of this process.
        args: The flags, including those of `add_optimization_flags` and `RecipeParser`.
        facts: Everything else that the result depends on. It must not change when the run is resumed.
        accelerator, run: As `start` returns them.
        termination: Handler of SIGTERM.

    Returns:
        The rows of metrics.jsonl, one per epoch. With `--eval-first`, the first row is epoch 0, before training.

    Raises:
        TrainingError: the run cannot be resumed, a file cannot be written, or the loss or a weight becomes infinite or
            NaN.
        Terminated: the run received SIGTERM, and has saved a checkpoint.
    """
    trainer = Trainer(task, model, batches, args, accelerator=accelerator, run=run)
    trainer.start(facts)
    with trainer.showing_progress(), termination.held_back(accelerator):
        if args.eval_first and not trainer.progress.history:
            trainer.save_epoch(trainer.evaluate_first())
        for epoch in range(trainer.progress.epoch, args.epochs):
            if trainer.is_out_of_patience():
                break
            for batch in trainer.start_epoch(epoch):
                trainer.train_step(batch)
                if accelerator.sync_gradients:  # the batch completed an update
                    trainer.log_update()
                    trainer.log_learning()
                    trainer.save_within_epoch(termination)
            row = trainer.evaluate()
            trainer.save_epoch(row)
            if termination.agreed() and row["epoch"] < args.epochs:
                raise trainer.terminated()
    return trainer.progress.history
