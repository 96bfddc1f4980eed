"""Tests of Triton's kernels run on a GPU where there is one, else in Triton's interpreter on the CPU.

The interpreter is chosen before Triton is imported: without a GPU a file of tests runs itself in a process of its own.
"""

import dataclasses
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
INTERPRETER = "TRITON_INTERPRET"
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")

runs_kernels = pytest.mark.skipif(not HAS_GPU and INTERPRETER not in os.environ, reason="runs in the interpreter")
outside = pytest.mark.skipif(HAS_GPU or INTERPRETER in os.environ, reason="the tests run in this process")


def skip_idle_work() -> None:
    """Spare Triton's interpreter two thirds of its time, which it spends on work without an effect.

    At each launch and each call of a device function it replaces the functions of its language anew; here it replaces
    them once. And it computes in 64 bits whether integers overflow, which it would only assert in its debug mode.
    """
    from triton.runtime import interpreter

    replace_functions, modules = interpreter._patch_lang, set()

    def replace_once(fn: Callable) -> SimpleNamespace:
        if fn.__module__ not in modules:  # what is replaced depends on what the function's module has imported
            modules.add(fn.__module__)
            replace_functions(fn)
        return SimpleNamespace(restore=lambda: None)

    interpreter._patch_lang = replace_once
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


if INTERPRETER in os.environ and importlib.util.find_spec("triton") is not None:
    skip_idle_work()


def run_in_interpreter(file: str) -> None:
    """Run the tests of a file, which must pass."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", file]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {INTERPRETER: "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
