"""The output folder of a run: locks and checks it, and prepares it for a new or a resumed run."""

import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from fdconv_zoo.errors import ConfigError, RunFolderError, WriteError, first_of
from fdconv_zoo.store.files import TEMPORARY_PREFIX, explaining_write_errors, remove, write_text
from fdconv_zoo.training.checkpoint import find_damage, list_checkpoints, named_checkpoints
from fdconv_zoo.training.lock import FileLock

_logger = logging.getLogger(__name__)

CONFIG = "train_config.yaml"
DATA = "data_checksum"  # key in the configuration: checksum of images and labels
LOCK = ".lock"  # it is not deleted

# Everything that a run writes, except the lock; --overwrite deletes it. The configuration marks the folder as that of a
# run: it is written first and deleted last.
PATTERNS = (
    f"{TEMPORARY_PREFIX}*",
    f"last/{TEMPORARY_PREFIX}*",
    f"checkpoints/{TEMPORARY_PREFIX}*",
    f"checkpoints/update-{'[0-9]' * 9}",
    "checkpoints/damaged-update-*",
    "tensorboard/*/events.out.tfevents.*",
    "tensorboard/events.out.tfevents.*",  # of earlier versions
    "last/model.safetensors",
    "last/config.json",
    "last/classes.csv",
    "last/confusion.csv",
    "last/confusion.png",
    "model.safetensors",
    "config.json",
    "metrics.jsonl",
    "learning.jsonl",
    "curves.png",
    "learning.png",
    "pictures.png",
    "classes.csv",
    "confusion.csv",
    "confusion.png",
    "predictions.json",
    "precision_recall.csv",
    "precision_recall.png",
    "truth.json",
    CONFIG,
)


class RunFolder:
    """The output folder of a run.

    Args:
        path: The folder; `start` creates it.
        resume: Continue the run in it, if there is one.
        overwrite: Delete the run in it, if there is one.

    Raises:
        RunFolderError: the folder contains a run, and neither `resume` nor `overwrite` is set; or it contains other
            files, is not a folder or cannot be read.
        ConfigError: both `resume` and `overwrite` are set.
    """

    def __init__(self, path: str | Path, *, resume: bool = False, overwrite: bool = False):
        self.path = Path(path)
        self.resume = resume
        self.overwrite = overwrite
        self._lock = FileLock(self.path / LOCK)
        if resume and overwrite:
            raise ConfigError(
                "--resume continues the run in the output folder and --overwrite deletes it: use one of them"
            )
        self._check()

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def newest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint; None if there is none."""
        return next(iter(reversed(list_checkpoints(self.checkpoints))), None)

    def lock(self) -> None:
        """Lock the folder against other runs until `release`. Only the main process calls this.

        Raises:
            RunFolderError: another run has locked the folder.
            WriteError: the folder cannot be written to.
        """
        with explaining_write_errors(self.path):
            acquired = self._lock.acquire()
        if not acquired:
            raise RunFolderError(
                f"--output {self.path}: it is in use, another run is writing to it; wait until that run has ended, or "
                "choose another folder"
            )

    def release(self) -> None:
        """Unlock the folder for other runs."""
        self._lock.release()

    def start(self, config: Mapping[str, Any], *, free_keys: Collection[str] = ()) -> None:
        """Prepare the folder for this run. Only the main process calls this.

        Afterwards, `newest_checkpoint` is the checkpoint to resume from, and it is intact: newer, damaged ones have
        been renamed. If it is None, the run starts from the beginning, and all files of an earlier run are deleted.

        Args:
            config: The full configuration.
            free_keys: Keys whose values may differ when a run is resumed, because the result does not depend on them.

        Raises:
            ConfigError: the run to be resumed was started with another configuration.
            RunFolderError: another run is writing to the folder, its configuration is damaged, or all its checkpoints
                are damaged.
            WriteError: the folder cannot be written to.
        """
        self.lock()
        self._check()  # another run may have started and ended since __init__
        config = json.loads(json.dumps(config))  # tuples become lists, as they are read from YAML
        if self.resume and (self.path / CONFIG).is_file():
            self._check_same(config, free_keys)
        with self.writing():
            fresh = not self.resume or not self._set_damaged_aside()
            for found in self._run_files():
                if fresh or found.name.startswith(TEMPORARY_PREFIX):
                    remove(found)
            write_text(self.path / CONFIG, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

    def write_metrics(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Rewrite metrics.jsonl: one JSON object per line and epoch."""
        lines = "".join(json.dumps(row) + "\n" for row in history)
        write_text(self.path / "metrics.jsonl", lines)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Convert a failed write in the block to a `WriteError` that names the last complete checkpoint."""
        newest = self.newest_checkpoint
        remedy = "Free some space and start again; no checkpoint had been written yet"
        if newest is not None:
            remedy = f"The last complete checkpoint is kept: {newest}. Free some space and start again with --resume"
        try:
            with explaining_write_errors(self.path):
                yield
        except WriteError as error:
            raise WriteError(f"{error}. {remedy}") from error

    def _run_files(self) -> list[Path]:
        return [found for pattern in PATTERNS for found in sorted(self.path.glob(pattern))]

    def _check(self) -> None:
        try:
            str(self.path).encode()
        except UnicodeEncodeError as error:
            raise RunFolderError(f"--output {str(self.path)!a}: its name is not UTF-8; choose another one") from error
        try:
            visible = sorted(found.name for found in self.path.iterdir() if not found.name.startswith("."))
        except FileNotFoundError:
            return
        except NotADirectoryError as error:
            what = "it is" if self.path.exists() else "a folder above it is"
            raise RunFolderError(f"--output {self.path}: {what} a file, not a folder") from error
        except OSError as error:
            raise RunFolderError(f"--output {self.path}: {error.strerror}; choose another folder") from error
        if visible and CONFIG not in visible:
            raise RunFolderError(
                f"--output {self.path}: it is not empty ({first_of(visible, 3)}) and has no {CONFIG}, so it is not the "
                "folder of a run; choose a new folder"
            )
        if visible and not self.resume and not self.overwrite:
            raise RunFolderError(
                f"--output {self.path}: it holds another run; continue it with --resume, delete it with --overwrite, "
                "or choose another folder"
            )

    def _set_damaged_aside(self) -> bool:
        """Rename the damaged checkpoints newer than the newest intact one; return whether there is an intact one."""
        damaged = {}
        for checkpoint in reversed(named_checkpoints(self.checkpoints)):
            problem = find_damage(checkpoint)
            if not problem:
                break
            damaged[checkpoint] = problem
        else:
            if damaged:
                words = "; ".join(f"{checkpoint.name}: {problem}" for checkpoint, problem in damaged.items())
                raise RunFolderError(
                    f"--resume: no checkpoint in {self.checkpoints} is whole ({words}); start again from the beginning "
                    "with --overwrite"
                )
            return False
        for broken, problem in damaged.items():
            aside = broken.with_name(f"damaged-{broken.name}")
            _logger.warning(
                "%s is damaged (%s): the run continues from %s before it. The damaged one is now %s.",
                *(broken, problem, checkpoint.name, aside.name),
            )
            remove(aside)
            broken.rename(aside)
        return True

    def _check_same(self, config: Mapping[str, Any], free_keys: Collection[str]) -> None:
        before = self._read_config()
        keys = sorted({*before, *config} - {*free_keys}, key=str)
        differing = [key for key in keys if before.get(key) != config.get(key)]
        if len(differing) > 1 and DATA in differing:
            differing.remove(DATA)  # a consequence of the others
        if differing == [DATA]:
            raise ConfigError(
                f"--resume: images, labels or their order have changed since the run in {self.path} was started. "
                "Restore them, or start a new run in another --output"
            )
        if differing:
            words = (f"{key} ({before.get(key)!r} then, {config.get(key)!r} now)" for key in differing)
            raise ConfigError(
                f"--resume: the run in {self.path} was started with another configuration: {', '.join(words)}. "
                "Use the same values, or start a new run in another --output"
            )

    def _read_config(self) -> dict[str, Any]:
        path = self.path / CONFIG
        remedy = "Restore it, or start a new run in another --output"
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RunFolderError(f"--resume: {path} cannot be read ({error.strerror}). {remedy}") from error
        except (ValueError, RecursionError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise RunFolderError(f"--resume: {path} is damaged, it is not YAML ({reason:.200}). {remedy}") from error
        if not isinstance(config, dict):
            raise RunFolderError(f"--resume: {path} is damaged, it does not hold the flags of a run. {remedy}")
        return config
