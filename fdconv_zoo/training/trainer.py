"""The steps of a training run. `fdconv_zoo.training.loop.fit` calls them in order."""

import argparse
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from typing import Any

import timm
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from timm.utils import ModelEmaV3
from torch import nn
from tqdm import tqdm

from fdconv_zoo.errors import NonFiniteError, Terminated
from fdconv_zoo.layers import keep_kernels
from fdconv_zoo.training.batches import TrainingBatches
from fdconv_zoo.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from fdconv_zoo.training.curves import draw_curves
from fdconv_zoo.training.learning_log import append_learning, cut_learning, read_learning
from fdconv_zoo.training.learning_picture import draw_learning
from fdconv_zoo.training.meter import Meter, format_speed
from fdconv_zoo.training.optimizer import build_optimizer, build_scheduler, learning_rate
from fdconv_zoo.training.randomness import seed_step
from fdconv_zoo.training.run_folder import RunFolder
from fdconv_zoo.training.task import Task
from fdconv_zoo.training.termination import Termination
from fdconv_zoo.training.tuning import train_mode
from fdconv_zoo.training.watch import Watch, gradient_scale, totals
from fdconv_zoo.version import __version__

# What may change when a run is resumed, because the result does not depend on it.
FREE_KEYS = (
    "config",
    "output",
    "resume",
    "overwrite",
    "workers",
    "checkpoint_every",
    "log_every",
    "log_with",
    "watch",
    "versions",
)
PROJECT = "fdconv-zoo"  # name of the project in trackers


class Trainer:
    """The state of a run in this process, and the steps that change it.

    Args:
        task, model, batches, args, accelerator, run: As in `fit`.

    Attributes:
        progress: Progress of the run.
        bar: Progress bar, created by `showing_progress`.
        meter: Meter of the losses of the current epoch, created by `start_epoch`.
    """

    bar: tqdm
    meter: Meter

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        batches: TrainingBatches,
        args: argparse.Namespace,
        *,
        accelerator: Accelerator,
        run: RunFolder,
    ):
        self.task, self.batches, self.args = task, batches, args
        self.accelerator, self.run = accelerator, run
        optimizer = build_optimizer(args, model)
        self.scheduler = build_scheduler(args, optimizer, batches.updates_per_epoch)
        # Copied before `prepare`, whose mixed-precision wrapper of forward() would keep using the original's weights.
        self.ema = ModelEmaV3(model, decay=args.ema_decay, use_warmup=True) if args.ema_decay else None
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.unwrapped_model = accelerator.unwrap_model(self.model)
        keep_kernels(self.unwrapped_model, args.keep_kernels)
        if args.compile or args.cuda_graphs:
            # In place, so that the type, the parameter names and the files of the model do not change.
            mode = "reduce-overhead" if args.cuda_graphs else None
            task.compiled_part(self.unwrapped_model).compile(mode=mode)
        self.watch = Watch(self.unwrapped_model, args.watch if accelerator.is_main_process else 0)
        self.evaluated_model = self.ema.module if self.ema else self.unwrapped_model
        self.progress = Progress()

    def start(self, facts: Mapping[str, Any]) -> None:
        """Prepare the output folder, and load its newest checkpoint if the run is resumed.

        Args:
            facts: Everything that the result depends on besides the flags.
        """
        config = self._config(facts)
        if self.accelerator.is_main_process:
            self.run.start(config, free_keys=FREE_KEYS)
        self.accelerator.wait_for_everyone()
        if self.run.newest_checkpoint is not None:
            self.accelerator.print(f"resuming from {self.run.newest_checkpoint}")
            self.progress = load_checkpoint(self.accelerator, self.run.newest_checkpoint, self.ema)
        elif self.args.resume:
            self.accelerator.print(f"--resume: {self.run.path} has no checkpoint, so the run starts from the beginning")
        with self.run.writing():
            self._start_trackers(config)
            if self.accelerator.is_main_process:
                # A run that was killed between writing metrics and checkpoint has left an extra line.
                self.run.write_metrics(self.progress.history)
                cut_learning(self.run.path, self.progress.update)

    def _start_trackers(self, config: Mapping[str, Any]) -> None:
        settings = {"tensorboard": {"purge_step": self.progress.update}, "wandb": {"name": self.run.path.name}}
        self.accelerator.init_trackers(PROJECT, init_kwargs=settings)
        flags = {key: value for key, value in config.items() if key in vars(self.args)}
        for tracker in self.accelerator.trackers:
            if tracker.name != "tensorboard":  # does not support lists; train_config.yaml is beside its log
                tracker.store_init_configuration(flags)

    @contextmanager
    def showing_progress(self) -> Iterator[None]:
        """Show the progress bar, and close it and the trackers at the end of the block, also after an exception."""
        self.bar = tqdm(
            total=self.args.epochs * self.batches.updates_per_epoch,
            initial=self.progress.update,
            unit="update",
            mininterval=0.1 if sys.stderr.isatty() else 30,
            disable=not self.accelerator.is_main_process,
        )
        try:
            with closing(self.bar):  # so that later output begins on a new line
                yield
        except Terminated:
            self.accelerator.end_training()  # flushes the logs
            raise
        with self.run.writing():
            self.accelerator.end_training()

    def start_epoch(self, epoch: int) -> Iterator[tuple]:
        """Prepare to train for an epoch, and return its remaining batches."""
        self.bar.set_description(f"epoch {epoch + 1}/{self.args.epochs}")
        train_mode(self.model)
        self.meter = Meter(self.accelerator, self.args.batch_size, self.progress.loss_sum, self.progress.step)
        if self.progress.step == self.batches.batches_per_epoch:  # the run ended before the evaluation
            return iter(())
        return self.batches.epoch(epoch, done=self.progress.step)

    def train_step(self, batch: tuple) -> None:
        """Run the forward and backward pass of a batch, and update the weights if enough batches are accumulated."""
        progress = self.progress
        self.scheduler.step_update(progress.update)
        step = progress.epoch * self.batches.batches_per_epoch + progress.step
        seed_step(self.args.seed, step, self.accelerator.process_index)
        if self.args.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        with self.accelerator.accumulate(self.model):
            is_watched = self.accelerator.sync_gradients and self.watch.is_due(progress.update + 1)
            with self.watch.forward() if is_watched else nullcontext():
                loss = self.task.loss(self.model, *batch)
            self.accelerator.backward(loss)
            with self.watch.update(gradient_scale(self.accelerator)) if is_watched else nullcontext():
                if self.accelerator.sync_gradients and self.args.clip_grad:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), self.args.clip_grad)
                self.optimizer.step()
            self.optimizer.zero_grad()
        self.meter.add(loss)
        progress.step += 1
        if self.accelerator.sync_gradients:
            progress.update += 1
            self.bar.update()
            if self.ema:
                self.ema.update(self.unwrapped_model, step=progress.update)

    def log_update(self) -> None:
        """Log training loss and learning rate, every `--log-every` updates.

        Raises:
            NonFiniteError: the loss is infinite or NaN.
        """
        if self.progress.update % self.args.log_every:
            return
        loss, speed = self.meter.recent()
        self._check_finite(loss)
        lr = learning_rate(self.optimizer)
        self.bar.set_postfix_str(f"loss {loss:.3f}, lr {lr:.2e}, {format_speed(speed)}")
        with self.run.writing():
            self.accelerator.log({"train/loss": loss, "train/lr": lr}, step=self.progress.update)

    def log_learning(self) -> None:
        """Log the measurements of `--watch`, if the update was measured. Only the main process measures."""
        if not self.watch.is_due(self.progress.update):
            return
        row = self.watch.row(self.progress.update, learning_rate(self.optimizer))
        figures = {f"learning/{name}/{part}": value for name, of in totals(row).items() for part, value in of.items()}
        with self.run.writing():
            append_learning(self.run.path, row)
            self.accelerator.log(figures, step=self.progress.update)

    def save_within_epoch(self, termination: Termination) -> None:
        """Save a checkpoint every `--checkpoint-every` updates, and when the run has received SIGTERM.

        After the last update of an epoch, `save_epoch` saves the checkpoint instead, after the evaluation.

        Raises:
            Terminated: the run has received SIGTERM.
            NonFiniteError: the loss or a weight is infinite or NaN.
        """
        every, is_last = self.args.checkpoint_every, self.progress.step == self.batches.batches_per_epoch
        is_due = every and not self.progress.update % every and not is_last
        is_to_end = termination.agreed()
        if is_due or is_to_end:
            self.progress.loss_sum = self.meter.total()
            self._check_finite(self.progress.loss_sum, weights=True)
            self._save_checkpoint()
        if is_to_end:
            raise self.terminated()

    def terminated(self) -> Terminated:
        """Return the exception that ends the run and names the newest checkpoint."""
        return Terminated(
            f"after update {self.progress.update}, which is saved in {self.run.newest_checkpoint}; continue with "
            "--resume"
        )

    def is_out_of_patience(self) -> bool:
        """Return whether `--patience` epochs have passed since the best one, and print a message if so."""
        history, chosen_by = self.progress.history, self.task.chosen_by
        if not history or not self.args.patience:
            return False
        best = max(history, key=lambda row: row[chosen_by])
        is_out = history[-1]["epoch"] - best["epoch"] >= self.args.patience
        if is_out and self.accelerator.is_main_process:
            self.bar.write(f"--patience {self.args.patience}: the best epoch was {best['epoch']}, so training stops")
        return is_out

    def evaluate_first(self) -> dict[str, Any]:
        """Evaluate the model before training, and return the row of metrics.jsonl."""
        return self._evaluated_row(0, None, None)

    def evaluate(self) -> dict[str, Any]:
        """Evaluate the model after an epoch, and return the row of metrics.jsonl.

        Raises:
            NonFiniteError: the loss or a weight is infinite or NaN.
        """
        self._share_buffers()
        train_loss, train_speed = self.meter.epoch()
        self._check_finite(train_loss, weights=True)
        return self._evaluated_row(self.progress.epoch + 1, train_loss, train_speed)

    def _evaluated_row(self, epoch: int, train_loss: float | None, train_speed: float | None) -> dict[str, Any]:
        with torch.compiler.set_stance("force_eager"):  # batches differ in size
            figures = self.task.evaluate(self.evaluated_model)
        return {
            "epoch": epoch,
            "update": self.progress.update,
            "lr": learning_rate(self.optimizer),
            "train_loss": train_loss,
            "train_images_per_second": train_speed,
            **figures,
        }

    def save_epoch(self, row: Mapping[str, Any]) -> None:
        """Complete the epoch: print and log its row, export the model, and save a checkpoint."""
        chosen_by, metrics = self.task.chosen_by, self.task.metrics
        is_best = row[chosen_by] > max((before[chosen_by] for before in self.progress.history), default=-1.0)
        history = [*self.progress.history, row]
        self.progress = Progress(epoch=row["epoch"], update=row["update"], history=history)
        if self.accelerator.is_main_process:
            self.bar.write(self._describe(row))
        with self.run.writing():
            figures = {f"validation/{key}": value for key, value in self.task.tracked(row).items()}
            self.accelerator.log(figures, step=row["update"])
            if self.accelerator.is_main_process:
                for folder in [self.run.path / "last"] + [self.run.path] * is_best:
                    self.task.export(self.evaluated_model, folder)
                self.run.write_metrics(history)
                draw_curves(history, self.run.path / "curves.png", metrics)
                if learning := read_learning(self.run.path):
                    draw_learning(learning, self.run.path / "learning.png")
        # The checkpoint comes last: a run killed before it repeats the epoch's end, and writes the same files again.
        self._save_checkpoint()

    def _describe(self, row: Mapping[str, Any]) -> str:
        """Format a row of metrics.jsonl as text."""
        words = [] if row["train_loss"] is None else [f"training loss {row['train_loss']:.3f}"]
        if row.get("loss") is not None:
            words.append(f"validation loss {row['loss']:.3f}")
        words.append(self.task.describe(row))
        if row["epoch"] == 0:
            return f"before training: {', '.join(words)}"
        words.append(format_speed(row["train_images_per_second"]))
        return f"epoch {row['epoch']}/{self.args.epochs}: {', '.join(words)}"

    def _config(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return all flags, and everything else that the result depends on."""
        return {
            **vars(self.args),
            "grad_accum": self.accelerator.gradient_accumulation_steps,
            "mixed_precision": self.accelerator.mixed_precision,
            "num_processes": self.accelerator.num_processes,
            "updates_per_epoch": self.batches.updates_per_epoch,
            **facts,
            "versions": {"fdconv_zoo": __version__, "timm": timm.__version__, "torch": torch.__version__},
        }

    def _save_checkpoint(self) -> None:
        with self.run.writing():
            save_checkpoint(self.accelerator, self.run.checkpoints, self.progress, self.ema)

    @torch.no_grad()
    def _share_buffers(self) -> None:
        """Broadcast the main process's buffers: running statistics differ, and only the main process's are saved."""
        if self.accelerator.num_processes > 1:
            for buffer in self.evaluated_model.buffers():
                buffer.copy_(broadcast(buffer))

    def _check_finite(self, loss: float, *, weights: bool = False) -> None:
        """Stop the run before a loss or weights that are infinite or NaN reach a checkpoint.

        Args:
            loss: A loss, or a sum of losses.
            weights: Check the model's weights and running statistics, too, which waits for the device.

        Raises:
            NonFiniteError: one of them is infinite or NaN.
        """
        if not math.isfinite(loss):
            what = "loss"
        elif weights and not all_finite(self.unwrapped_model):
            what = "weights"
        else:
            return
        newest = self.run.newest_checkpoint
        kept = f"The last good checkpoint is kept: {newest}." if newest else "No checkpoint had been written yet."
        raise NonFiniteError(
            f"the {what} became infinite or NaN by update {self.progress.update}. {kept} Try a lower --lr, a longer "
            "--warmup-epochs, --clip-grad 1.0, or --mixed-precision bf16 instead of fp16, in a new --output"
        )


def all_finite(model: nn.Module) -> bool:
    """Return whether all weights and running statistics are finite."""
    return bool(torch.stack([value.isfinite().all() for value in model.state_dict().values()]).all())
