"""The scripts, as modules to call and as processes to start."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent

# A run of seconds on the packaged sample: 2 epochs of 6 updates of 2 batches, with everything random switched on.
TINY = [
    *("--model", "resnet10s_fdconv", "--no-pretrained", "--img-size", "32", "--dataset", "fashion_mnist_sample"),
    *("--limit", "100", "--epochs", "2", "--batch-size", "8", "--grad-accum", "2", "--workers", "0"),
    *("--mixup", "0.2", "--cutmix", "1.0", "--drop", "0.1", "--drop-path", "0.1", "--ema-decay", "0.9"),
    *("--lr", "0.01", "--layer-decay", "0.9", "--log-every", "3"),
]


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start_script(name: str, *arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, *launcher, str(ROOT / "scripts" / f"{name}.py"), *map(str, arguments)]
    return subprocess.Popen(
        command, env={**os.environ, **settings}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
