"""The C compiler of this machine."""

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from fdconv_zoo.ops.native.unavailable import UnavailableError


class Compiler(NamedTuple):
    """A compiler.

    Attributes:
        command: the program, with flags if ``CC`` names any.
        version: the output of ``--version``.
    """

    command: tuple[str, ...]
    version: str

    @property
    def name(self) -> str:
        """The command and the version in one line."""
        return f"{shlex.join(self.command)} ({self.version.partition(chr(10))[0]})"


def find_compiler(deadline: float) -> Compiler:
    """Find the compiler that ``CC`` names; without it, the first of cc, gcc and clang.

    Args:
        deadline: see :func:`run`.

    Raises:
        UnavailableError: there is none, or it does not run.
    """
    named = os.environ.get("CC", "").strip()
    candidates = [named] if named else ["cc", "gcc", "clang"]
    for candidate in candidates:
        program, *flags = _split(candidate)
        path = shutil.which(program)
        if path:
            command = (path, *flags)
            return Compiler(command, run([*command, "--version"], deadline).strip())
    if named:
        raise UnavailableError(f"CC={named} is not a program on PATH; correct or unset CC")
    raise UnavailableError("no C compiler (cc, gcc or clang) is on PATH; install one, or name it in CC")


def run(command: Sequence[str], deadline: float) -> str:
    """Run a program that may hang, and return what it prints.

    Args:
        command: the program and its arguments.
        deadline: when to kill it, on the clock of ``time.monotonic()``.

    Raises:
        UnavailableError: the program cannot be run, fails, or does not end in time.
    """
    # If the program is this one (Python may be embedded in it), it must not start another build.
    environment = os.environ | {"LC_ALL": "C", "FDCONV_NATIVE": "0"}
    name = os.path.basename(command[0])
    try:
        # A file instead of a pipe, which child processes of the compiler could keep open after it ends.
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
            )
            try:
                code = process.wait(max(deadline - time.monotonic(), 0))
            except BaseException:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
                process.wait()
                raise
            output.seek(0)
            text = output.read().decode(errors="replace")
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{name} did not end in time") from None
    except OSError as error:
        raise UnavailableError(f"{name} cannot be run: {error}") from None
    if code:
        ending = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit status {code}"
        raise UnavailableError(f"{name} {ending}: {_first_error(text)}")
    return text


def _split(command: str) -> list[str]:
    if shutil.which(command):  # a path with spaces
        return [command]
    try:
        return shlex.split(command)
    except ValueError:
        return [command]


def _first_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[0] if lines else "it printed nothing")
