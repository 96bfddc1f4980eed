"""The output folder of a run: whose it is, what is in it, and every write to it."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from fdconv_zoo.errors import ConfigError, RunFolderError, WriteError
from fdconv_zoo.store.files import TEMPORARY_PREFIX, explaining_write_errors, remove, write_text
from fdconv_zoo.training.checkpoint import list_checkpoints

CONFIG = "train_config.yaml"

# All that a run makes, and so all that --overwrite deletes. The configuration marks the folder as a run's: it is
# written first and deleted last.
PATTERNS = (
    f"{TEMPORARY_PREFIX}*",
    f"last/{TEMPORARY_PREFIX}*",
    f"checkpoints/{TEMPORARY_PREFIX}*",
    "checkpoints/update-*",
    "tensorboard/events.out.tfevents.*",
    "last/model.safetensors",
    "last/config.json",
    "model.safetensors",
    "config.json",
    "metrics.jsonl",
    "curves.png",
    "pictures.png",
    "predictions.json",
    CONFIG,
)


class RunFolder:
    """The folder a training script writes to.

    Args:
        path: The folder; made by `start`.
        resume: Continue the run in it, where there is one.
        overwrite: Delete the run in it, where there is one.

    Raises:
        RunFolderError: it holds a run and neither is asked for, or files of a run's names that no run made.
        ConfigError: both are asked for.
    """

    def __init__(self, path: str | Path, *, resume: bool = False, overwrite: bool = False):
        self.path = Path(path)
        self.resume = resume
        if resume and overwrite:
            raise ConfigError("--resume continues the run in the output folder and --overwrite deletes it: give one")
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"--output {self.path}: it is a file, not a folder")
        found = self._run_files()
        if not found:
            return
        if not (self.path / CONFIG).is_file():
            raise RunFolderError(
                f"--output {self.path}: it has {found[0].relative_to(self.path)} but no {CONFIG}, so it is not the "
                "folder of a run, and a run would replace files in it; choose another folder"
            )
        if not resume and not overwrite:
            raise RunFolderError(
                f"--output {self.path}: it holds another run; continue it with --resume, delete it with --overwrite, "
                "or choose another folder"
            )

    @property
    def checkpoints(self) -> Path:
        """Where the resume states lie."""
        return self.path / "checkpoints"

    @property
    def newest_checkpoint(self) -> Path | None:
        """The newest whole resume state."""
        return next(iter(reversed(list_checkpoints(self.checkpoints))), None)

    def start(self, config: Mapping[str, Any], *, free_keys: Collection[str] = ()) -> None:
        """Take the folder over for this run; the main process does it for all.

        Afterwards `newest_checkpoint` is the state to resume from. Where there is none the run begins from the
        beginning, and all that an earlier one left is gone.

        Args:
            config: The full configuration.
            free_keys: Those that may differ from the run that is resumed, because the result does not depend on them.

        Raises:
            ConfigError: the run to be resumed was started with another configuration.
            WriteError: the folder cannot be written.
        """
        config = json.loads(json.dumps(config))  # tuples become the lists that YAML gives back
        if self.resume and (self.path / CONFIG).is_file():
            self._check_same(config, free_keys)
        fresh = not self.resume or self.newest_checkpoint is None
        with self.writing():
            for found in self._run_files():
                if fresh or found.name.startswith(TEMPORARY_PREFIX):
                    remove(found)
            write_text(self.path / CONFIG, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

    def write_metrics(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write metrics.jsonl anew: one JSON object a line and epoch."""
        lines = "".join(json.dumps(row) + "\n" for row in history)
        write_text(self.path / "metrics.jsonl", lines)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Wrap every write of the run: a failure is raised as a `WriteError` that says what is kept."""
        newest = self.newest_checkpoint
        remedy = "Make room and start again; no checkpoint had been written yet"
        if newest is not None:
            remedy = f"The last whole checkpoint is kept: {newest}. Make room and start again with --resume"
        try:
            with explaining_write_errors(self.path):
                yield
        except WriteError as error:
            raise WriteError(f"{error}. {remedy}") from error

    def _run_files(self) -> list[Path]:
        return [found for pattern in PATTERNS for found in sorted(self.path.glob(pattern))]

    def _check_same(self, config: Mapping[str, Any], free_keys: Collection[str]) -> None:
        before = yaml.safe_load((self.path / CONFIG).read_text(encoding="utf-8"))
        differing = [
            f"{key} ({before.get(key)!r} then, {config.get(key)!r} now)"
            for key in sorted({*before, *config} - {*free_keys})
            if before.get(key) != config.get(key)
        ]
        if differing:
            raise ConfigError(
                f"--resume: the run in {self.path} was started with another configuration, and would not give what it "
                f"began: {', '.join(differing)}. Give the same values, or start a new run in another --output"
            )
