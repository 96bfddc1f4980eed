"""The training loop that all tasks share: updates, averaged weights, checkpoints, evaluation, files."""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, set_seed
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from tqdm import tqdm

from fdconv_zoo.errors import ConfigError
from fdconv_zoo.training.batches import TrainingBatches
from fdconv_zoo.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from fdconv_zoo.training.curves import draw_curves
from fdconv_zoo.training.finite import check_finite
from fdconv_zoo.training.flags import build_scheduler
from fdconv_zoo.training.meter import Meter
from fdconv_zoo.training.optimizer import build_optimizer, learning_rate
from fdconv_zoo.training.randomness import seed_step
from fdconv_zoo.training.run_folder import RunFolder
from fdconv_zoo.training.tuning import train_mode
from fdconv_zoo.version import __version__

# What a resumed run may change: the result does not depend on it.
FREE_KEYS = ("config", "output", "resume", "overwrite", "workers", "checkpoint_every", "log_every", "versions")


@dataclass(frozen=True)
class Task:
    """What one kind of training does its own way.

    Attributes:
        loss: (model, *batch) to the scalar that is minimized.
        evaluate: The model to figures for a row of metrics.jsonl: `metrics`, and `loss` where there is one. Every
            process calls it.
        export: Writes the model, whole or not at all, into a folder; the main process calls it.
        metrics: Key in the row to its name, for figures in percent that may be None; the first, never None, chooses the
            best epoch.
    """

    loss: Callable[..., Tensor]
    evaluate: Callable[[nn.Module], dict[str, Any]]
    export: Callable[[nn.Module, Path], None]
    metrics: Mapping[str, str]


def start(args: argparse.Namespace) -> tuple[Accelerator, RunFolder]:
    """Devices and processes, seeded, and the folder of the run, from the flags every script has.

    Raises:
        ConfigError: a precision that the device has not.
        RunFolderError: `--output` is not to be written to.
    """
    try:
        accelerator = Accelerator(
            mixed_precision=args.mixed_precision,
            gradient_accumulation_steps=args.grad_accum,
            log_with="tensorboard",
            project_dir=args.output,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error  # such as bf16 on a GPU that has none
    run = RunFolder(args.output, resume=args.resume, overwrite=args.overwrite)
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
) -> list[dict[str, Any]]:
    """Train from the beginning, or from where the run was stopped, to the end.

    Args:
        task: What is trained.
        model: On the accelerator's device.
        batches: Of this process.
        args: The script's flags, those of `add_optimization_flags` and `ArgumentParser` among them.
        facts: What the run depends on besides: a resumed run must have the same.
        accelerator, run: As `start` gives them.

    Returns:
        The rows of metrics.jsonl, one an epoch.

    Raises:
        TrainingError: the run cannot be resumed as it is asked for, or stops because its loss is no longer a number.
    """
    optimizer = build_optimizer(args, model)
    scheduler = build_scheduler(args, optimizer, batches.updates_per_epoch)
    # Copied before `prepare`, whose mixed-precision wrapper of forward() would go on using the original's weights.
    ema = ModelEmaV3(model, decay=args.ema_decay, use_warmup=True) if args.ema_decay else None
    model, optimizer = accelerator.prepare(model, optimizer)
    plain_model = accelerator.unwrap_model(model)
    evaluated_model = ema.module if ema else plain_model

    # The run: a new one, or where it was stopped.
    config = {
        **vars(args),
        "grad_accum": accelerator.gradient_accumulation_steps,
        "mixed_precision": accelerator.mixed_precision,
        "num_processes": accelerator.num_processes,
        "updates_per_epoch": batches.updates_per_epoch,
        **facts,
        "versions": {"fdconv_zoo": __version__, "timm": timm.__version__, "torch": torch.__version__},
    }
    if accelerator.is_main_process:
        run.start(config, free_keys=FREE_KEYS)
    accelerator.wait_for_everyone()
    progress = Progress()
    if run.newest_checkpoint is not None:
        accelerator.print(f"resuming from {run.newest_checkpoint}")
        progress = load_checkpoint(accelerator, run.newest_checkpoint, ema)
    elif args.resume:
        accelerator.print(f"--resume: no checkpoint in {run.path}, so the run begins from the beginning")
    with run.writing():
        accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": progress.update}})
        if accelerator.is_main_process:
            run.write_metrics(progress.history)  # a run killed between metrics and checkpoint has a line too many

    bar = tqdm(
        total=args.epochs * batches.updates_per_epoch,
        initial=progress.update,
        unit="update",
        mininterval=0.1 if sys.stderr.isatty() else 30,
        disable=not accelerator.is_main_process,
    )
    for epoch in range(progress.epoch, args.epochs):
        bar.set_description(f"epoch {epoch + 1}/{args.epochs}")
        train_mode(model)
        meter = Meter(accelerator, args.batch_size, progress.loss_sum, progress.step)
        for batch in batches.epoch(epoch, done=progress.step):
            scheduler.step_update(progress.update)
            seed_step(args.seed, epoch * batches.batches_per_epoch + progress.step, accelerator.process_index)
            with accelerator.accumulate(model):
                loss = task.loss(model, *batch)
                accelerator.backward(loss)
                if accelerator.sync_gradients and args.clip_grad:
                    accelerator.clip_grad_norm_(model.parameters(), args.clip_grad)
                optimizer.step()
                optimizer.zero_grad()
            meter.add(loss)
            progress.step += 1
            if not accelerator.sync_gradients:
                continue

            progress.update += 1
            if ema:
                ema.update(plain_model, step=progress.update)
            bar.update()
            if progress.update % args.log_every == 0:
                loss, speed = meter.recent()
                check_finite(loss, update=progress.update, checkpoint=run.newest_checkpoint)
                lr = learning_rate(optimizer)
                bar.set_postfix_str(f"loss {loss:.3f}, lr {lr:.2e}, {speed:.0f} images/s")
                with run.writing():
                    accelerator.log({"train/loss": loss, "train/lr": lr}, step=progress.update)
            is_last = progress.step == batches.batches_per_epoch
            if args.checkpoint_every and progress.update % args.checkpoint_every == 0 and not is_last:
                progress.loss_sum = meter.total()
                check_finite(progress.loss_sum, plain_model, update=progress.update, checkpoint=run.newest_checkpoint)
                with run.writing():
                    save_checkpoint(accelerator, run.checkpoints, progress, ema)

        share_buffers(accelerator, evaluated_model)
        train_loss, train_speed = meter.epoch()
        check_finite(train_loss, plain_model, update=progress.update, checkpoint=run.newest_checkpoint)
        row = {
            "epoch": epoch + 1,
            "update": progress.update,
            "lr": learning_rate(optimizer),
            "train_loss": train_loss,
            "train_images_per_second": train_speed,
            **task.evaluate(evaluated_model),
        }
        best_by = next(iter(task.metrics))
        is_best = row[best_by] > max((before[best_by] for before in progress.history), default=-1.0)
        progress = Progress(epoch=epoch + 1, update=progress.update, history=[*progress.history, row])
        if accelerator.is_main_process:
            bar.write(f"epoch {epoch + 1}/{args.epochs}: {describe(row, task.metrics)}, {train_speed:.0f} images/s")

        # The checkpoint comes last: a run killed before it repeats what lies between, and writes the same again.
        with run.writing():
            figures = {f"validation/{key}": row[key] for key in ("loss", *task.metrics) if row.get(key) is not None}
            accelerator.log(figures, step=progress.update)
            if accelerator.is_main_process:
                for folder in [run.path / "last"] + [run.path] * is_best:
                    task.export(evaluated_model, folder)
                run.write_metrics(progress.history)
                draw_curves(progress.history, run.path / "curves.png", task.metrics)
            save_checkpoint(accelerator, run.checkpoints, progress, ema)
    bar.close()
    with run.writing():
        accelerator.end_training()
    return progress.history


def describe(row: Mapping[str, Any], metrics: Mapping[str, str]) -> str:
    """A row of metrics.jsonl in words."""
    words = [f"training loss {row['train_loss']:.3f}"]
    if row.get("loss") is not None:
        words.append(f"validation loss {row['loss']:.3f}")
    return ", ".join(words + [f"{name} {row[key]:.2f} %" for key, name in metrics.items() if row[key] is not None])


@torch.no_grad()
def share_buffers(accelerator: Accelerator, model: nn.Module) -> None:
    """Give every process the main one's buffers: running statistics differ, and the main process's are saved."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer))
