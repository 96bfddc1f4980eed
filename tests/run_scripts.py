"""The scripts, as modules to call and as processes to start."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fdconv_zoo.training.checkpoint import list_checkpoints

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "scripts"))  # where a started script finds its neighbours

# A run of seconds on the packaged sample: 2 epochs of 6 updates of 2 batches, with everything random switched on. Two
# of the network's four stages have FDConv layers.
TINY = [
    *("--model", "resnet10s_fdconv", "--no-pretrained", "--model-kwargs", "channels=(8,16,24,32)"),
    *("--img-size", "32", "--dataset", "fashion_mnist_sample"),
    *("--limit", "100", "--epochs", "2", "--batch-size", "8", "--grad-accum", "2", "--workers", "0"),
    *("--mixup", "0.2", "--cutmix", "1.0", "--drop", "0.1", "--drop-path", "0.1", "--ema-decay", "0.9"),
    *("--lr", "0.01", "--layer-decay", "0.9", "--log-every", "3"),
]


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start_script(
    name: str, *arguments: str, launcher: tuple[str, ...] = (), start_new_session: bool = False
) -> subprocess.Popen:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, *launcher, str(ROOT / "scripts" / f"{name}.py"), *map(str, arguments)]
    return subprocess.Popen(
        command,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=start_new_session,
    )


def wait_until_there(process: subprocess.Popen, path: Path) -> None:
    """Let a script run until a file or folder is there."""
    deadline = time.monotonic() + 240
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def kill_when_there(process: subprocess.Popen, path: Path) -> None:
    """Let a script run until a file or folder is there, then kill it."""
    try:
        wait_until_there(process, path)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def run_on_the_cpu(script: ModuleType, *arguments: object) -> None:
    """Run a script in this process, with one thread, as `start_script` does in its own."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        torch.set_num_threads(1)
        script.main([*map(str, arguments)])
    torch.set_num_threads(threads)


def kill_and_resume(
    name: str, output: Path, seen: str, *arguments: object, finished: Path, killed_with: tuple = ()
) -> None:
    """Kill the run of a script when it has written a checkpoint, and resume it to its end.

    Args:
        name: of the script.
        output: folder of the run.
        seen: name of the checkpoint.
        *arguments: without `--output`.
        finished: folder of the same run, which nothing stopped.
        killed_with: further arguments of the process that is killed.
    """
    flags = [*arguments, "--output", output]
    kill_when_there(start_script(name, *flags, *killed_with), output / "checkpoints" / seen)
    newest, last = (list_checkpoints(folder / "checkpoints")[-1].name for folder in (output, finished))
    assert newest < last, "it ended before it was killed"
    run_on_the_cpu(load_script(name), *flags, "--resume")


def read_metrics(folder: Path) -> list[dict]:
    """The rows that a run has left."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def read_figures(folder: Path) -> list[dict]:
    """Those rows without speeds, which are the same for the same run."""
    return [{k: v for k, v in row.items() if "per_second" not in k} for row in read_metrics(folder)]


def read_tracked(folder: Path) -> dict[str, list[float]]:
    """The values by name in TensorBoard's files of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # takes a second to import

    (file,) = (folder / "tensorboard").rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file))
    events.Reload()
    return {name: [event.value for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
