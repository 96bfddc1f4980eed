"""Compile the C files of this folder, at first use, into a folder of the user's cache."""

import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

_FLAGS = (
    "-O3", "-std=gnu11", "-fPIC", "-shared",
    # Faster, and NaN and infinity still come through as they should.
    "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip
_PROCESSOR_FLAGS = (("-march=native",), ("-mcpu=native",), ())  # those that the compiler takes, the first of them
_SECONDS_TO_COMPILE = 120


class BuildError(Exception):
    """There can be no native code here; says why."""


class Build(NamedTuple):
    """A compiled library.

    Attributes:
        path: of the file.
        compiler: its path.
        seconds: that compiling took; None where the file was in the cache.
    """

    path: Path
    compiler: str
    seconds: float | None


def build(*, again: bool = False) -> Build:
    """Find the library in the cache, or compile it.

    The file's name is a hash of all that it depends on. It appears at once and whole, so that processes may build at
    the same time.

    Args:
        again: compile even if there is a file.

    Raises:
        BuildError: no compiler, one that fails, or a cache that cannot be used.
    """
    if sys.platform not in ("linux", "darwin") or sys.maxsize < 2**32:
        raise BuildError(f"native code is not supported on {sys.platform} with {platform.architecture()[0]}")
    compiler = _find_compiler()
    folder = _cache_folder()
    path = folder / f"{_hash(compiler)}.so"
    if not again and path.exists():
        _check_owner(path)
        return Build(path, compiler, None)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        compiled = Path(temporary, path.name)
        _compile(compiler, compiled)
        compiled.chmod(0o700)
        os.replace(compiled, path)
    return Build(path, compiler, time.perf_counter() - start)


def _find_compiler() -> str:
    names = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    raise BuildError(f"no C compiler ({', '.join(names)}) is on the PATH")


def _sources() -> list[Path]:
    return sorted(path for path in Path(__file__).parent.iterdir() if path.suffix in (".c", ".h"))


def _hash(compiler: str) -> str:
    parts = [_run([compiler, "--version"]), repr((compiler, _FLAGS, _PROCESSOR_FLAGS)), _processor()]
    contents = [part.encode() for part in parts] + [path.read_bytes() for path in _sources()]
    return hashlib.sha256(b"\0".join(contents)).hexdigest()


def _processor() -> str:
    """What tells a processor from those that have other instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    except OSError:
        lines = [platform.processor()]
    telling = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU")
    return "\n".join([platform.machine(), *(line for line in lines if line.startswith(telling))])


def _cache_folder() -> Path:
    usual = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    folder = Path(os.environ.get("XDG_CACHE_HOME") or usual) / "fdconv_zoo" / "native"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(f"the cache {folder} cannot be made: {error.strerror}") from error
    _check_owner(folder)
    if not os.access(folder, os.W_OK):
        raise BuildError(f"the cache {folder} cannot be written to")
    return folder


def _check_owner(path: Path) -> None:
    """Refuse code that others may have put there."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise BuildError(f"{path} is a symbolic link; remove it")
    if found.st_uid != os.getuid():
        raise BuildError(f"{path} belongs to another user (uid {found.st_uid}); remove it, or set XDG_CACHE_HOME")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BuildError(f"others can write to {path}; remove it, or `chmod go-w` it")


def _compile(compiler: str, path: Path) -> None:
    sources = [str(source) for source in _sources() if source.suffix == ".c"]
    first_error = None
    for processor_flags in _PROCESSOR_FLAGS:
        try:
            _run([compiler, *_FLAGS, *processor_flags, "-o", str(path), *sources, "-lm"])
            return
        except BuildError as error:
            first_error = first_error or error
    raise first_error


def _run(command: list[str]) -> str:
    """Run the compiler and return its output."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_SECONDS_TO_COMPILE, check=False,
            env=os.environ | {"LC_ALL": "C"},
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{command[0]} did not end within {_SECONDS_TO_COMPILE} s") from error
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        errors = [line for line in lines if "error" in line] or lines or ["without a message"]
        raise BuildError(f"{command[0]} failed: {errors[0]}")
    return done.stdout
