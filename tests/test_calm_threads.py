"""Commands and scripts keep idle threads from spinning, and the library leaves that to its user: see startup.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_scripts import ROOT

pytestmark = pytest.mark.skipif(
    not list((Path(torch.__file__).parent / "lib").glob("libgomp*")), reason="torch does not use GCC's OpenMP"
)


def spin_count(*arguments: str, **environment: str) -> str:
    """What the runtime of a Python process has read, in its own words; the process ends when it has said that."""
    inherited = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    settings = inherited | {"PYTHONPATH": str(ROOT), "OMP_DISPLAY_ENV": "verbose"} | environment
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, cwd=ROOT, env=settings, stderr=subprocess.PIPE, text=True) as process:
        line = next(line for line in process.stderr if "GOMP_SPINCOUNT" in line)
        process.kill()
    return line.partition("=")[2].strip(" '\n")


@pytest.mark.parametrize("command", [["scripts/convert.py", "--help"], ["-m", "fdconv_zoo", "list"]])
def test_is_set_before_torch_is_loaded(command):
    assert spin_count(*command) == "1000"


def test_the_users_setting_stays():
    assert spin_count("-m", "fdconv_zoo", "list", GOMP_SPINCOUNT="7") == "7"


def test_the_library_sets_nothing():
    assert spin_count("-c", "import fdconv_zoo") != "1000"
