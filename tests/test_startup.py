"""What a process of `fdconv-zoo` or `python -m fdconv_zoo` does before torch is loaded."""

import os
import subprocess
import sys

import pytest
from run_scripts import ROOT

import fdconv_zoo
from fdconv_zoo.startup import _starts_a_command

PROGRAM = "import sys; from fdconv_zoo.__main__ import main; sys.exit(main())"  # as pip writes it


@pytest.fixture
def program(tmp_path):
    """The installed program, and its environment, in which torch cannot be imported."""
    path = tmp_path / "bin" / "fdconv-zoo"
    path.parent.mkdir()
    path.write_text(PROGRAM)
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported')")
    return str(path), os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}


@pytest.mark.parametrize("as_module", [False, True])
def test_commands_and_version_are_said_without_torch(program, as_module):
    path, environment = program
    start = [sys.executable, *(["-m", "fdconv_zoo"] if as_module else [path])]

    def say(*flags):
        done = subprocess.run([*start, *flags], env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == (2 if "nope" in flags else 0), done.stderr
        return done.stdout + done.stderr

    assert say() == say("--help")
    assert "train     Train or fine-tune an image classifier." in say()
    assert say("--version") == f"fdconv-zoo {fdconv_zoo.__version__}\n"
    assert "invalid choice: 'nope' (choose from" in say("nope")


@pytest.mark.parametrize(
    ("arguments", "original", "starts"),
    [
        (["-m", "train", "-m"], ["python", "-u", "-m", "fdconv_zoo", "train", "-m"], True),
        (["-m"], ["python", "-mfdconv_zoo"], True),
        (["-m", "fdconv_zoo"], ["python", "-m", "other", "fdconv_zoo"], False),
        (["/env/bin/fdconv-zoo", "list"], ["python", "/env/bin/fdconv-zoo", "list"], True),
        (["scripts/train.py"], ["python", "scripts/train.py"], False),
        ([""], ["python"], False),
        ([], [], False),
    ],
)
def test_only_commands_put_off_the_library(monkeypatch, arguments, original, starts):
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(sys, "orig_argv", original)
    assert _starts_a_command() is starts
