"""Compiles the C files of this folder into one library, once for each compiler and processor."""

import hashlib
import platform
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from fdconv_zoo.ops.native.cache import build_folder, find_library, keep_library, open_cache
from fdconv_zoo.ops.native.compiler import Compiler, find_compiler, run
from fdconv_zoo.ops.native.unavailable import UnavailableError

SOURCES = Path(__file__).parent

# There is no -ffast-math, since NaN and infinity must be preserved. Only errno and floating-point traps are disabled.
FLAGS = ("-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC")
# Flags for the instructions of this processor. Some compilers support only the second; the last always works.
TARGETS = (("-march=native",), ("-mcpu=native",), ())

TIMEOUT = 120.0  # seconds; a build takes three on an idle machine

# Lines of /proc/cpuinfo that say which instructions there are, on x86, ARM, RISC-V and POWER.
_CPU_LINES = {"model name", "model", "flags", "Features", "CPU implementer", "CPU part", "CPU variant", "isa", "cpu"}


class Build(NamedTuple):
    """A built library.

    Attributes:
        path: the file.
        compiler: the compiler that built it.
        flags: the compiler's flags.
        seconds: how long the build took; None if the library was found in the cache.
    """

    path: Path
    compiler: Compiler
    flags: tuple[str, ...]
    seconds: float | None


def build() -> Build:
    """Find the library in the cache, or compile it.

    Raises:
        UnavailableError: the system is not supported, or the library can neither be found nor compiled.
    """
    if sys.platform not in ("linux", "darwin") or sys.maxsize < 2**32:
        raise UnavailableError("only 64-bit Linux and macOS are supported")
    folder = open_cache()
    deadline = time.monotonic() + TIMEOUT
    compiler = find_compiler(deadline)
    problem = None
    for target in TARGETS:
        flags = (*FLAGS, *target)
        key = _key(compiler, flags)
        path = find_library(folder, key)
        if path is not None:
            return Build(path, compiler, flags, seconds=None)
        try:
            return _compile(compiler, flags, folder, key, deadline)
        except UnavailableError as error:
            problem = problem or error
    raise problem


def _compile(compiler: Compiler, flags: tuple[str, ...], folder: Path, key: str, deadline: float) -> Build:
    start = time.perf_counter()
    sources = _files("*.c")
    with build_folder(folder) as temporary:
        objects = [temporary / f"{source.stem}.o" for source in sources]

        def compile_file(source: Path, target: Path) -> None:
            run([*compiler.command, *flags, "-c", str(source), "-o", str(target)], deadline)

        with ThreadPoolExecutor(len(sources)) as threads:
            list(threads.map(compile_file, sources, objects))
        library = temporary / "library.so"
        run([*compiler.command, *flags, "-shared", *map(str, objects), "-o", str(library), "-lm"], deadline)
        _check(library, deadline)
        path = keep_library(library, folder, key)
    return Build(path, compiler, flags, time.perf_counter() - start)


def _check(library: Path, deadline: float) -> None:
    """Run ``check.py``: compilers have bugs, and a virtual machine may report instructions that it does not support."""
    if not sys.executable:  # Python is embedded in another program
        return
    try:
        run([sys.executable, "-I", "-S", str(SOURCES / "check.py"), str(library)], deadline)
    except UnavailableError as error:
        raise UnavailableError(f"the compiled library failed its check: {error}") from None


def _key(compiler: Compiler, flags: tuple[str, ...]) -> str:
    """Hash everything that the library depends on."""
    digest = hashlib.sha256()
    for file in _files("*.[ch]"):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    for text in (shlex.join(compiler.command), compiler.version, shlex.join(flags), _machine()):
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:20]


def _files(pattern: str) -> list[Path]:
    return sorted(SOURCES.glob(pattern))


def _machine() -> str:
    """Describe the processor's features and the version of the C library."""
    lines = [platform.machine(), *platform.libc_ver()]
    if sys.platform == "darwin":
        known = subprocess.run(["/usr/sbin/sysctl", "machdep.cpu", "hw.optional"], capture_output=True, text=True)
        lines.append(known.stdout)
    else:
        described = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        lines += sorted({line for line in described if line.partition(":")[0].strip() in _CPU_LINES})
    return "\n".join(lines)
