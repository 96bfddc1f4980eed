"""The scripts keep idle threads from spinning: see scripts/calm_threads.py."""

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


def spin_count(script: str, **environment: str) -> str:
    """What the runtime of a script has read, in its own words."""
    inherited = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    settings = inherited | {"PYTHONPATH": str(ROOT), "OMP_DISPLAY_ENV": "verbose"} | environment
    result = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / script), "--help"],
        env=settings, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    (line,) = {line for line in result.stderr.splitlines() if "GOMP_SPINCOUNT" in line}
    return line.partition("=")[2].strip(" '")


@pytest.mark.parametrize("script", ["train.py", "compare.py"])
def test_is_set_before_torch_is_loaded(script):
    assert spin_count(script) == "1000"


def test_the_users_setting_stays():
    assert spin_count("predict.py", GOMP_SPINCOUNT="7") == "7"
