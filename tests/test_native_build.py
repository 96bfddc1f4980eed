"""How the C functions are built, kept and loaded, and what happens where they cannot be."""

import multiprocessing
import os
import re
import shutil
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import randomize
from torch._subclasses import FakeTensorMode

from fdconv_zoo import FDConv2d, set_path
from fdconv_zoo.ops import native
from fdconv_zoo.ops.native import cache, compiler, load
from fdconv_zoo.ops.native.build import build
from fdconv_zoo.ops.native.unavailable import UnavailableError

BUILD = native.current_build()

needs_native = pytest.mark.skipif(native.library() is None, reason=f"no native code: {native.problem()}")
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no compiler")

# A compiler that takes no time: it hands out a library that is there. A test adds lines of its own.
COMPILER = """#!/bin/sh
all="$*"
{first}
case "$all" in *--version) echo "quick 1.0"; exit;; esac
echo "$all" >> "{log}"
while [ $# -gt 1 ]; do [ "$1" = -o ] && out=$2; shift; done
library="{library}"
{last}
cp "$library" "$out"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The folder of libraries in an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fdconv_zoo" / "native"


@pytest.fixture
def quick(tmp_path, monkeypatch, folder):
    """Write a compiler that takes no time, name it in CC, and return the log of its calls."""

    def write(first: str = "", last: str = "") -> Path:
        path, log = tmp_path / "quick", tmp_path / "log"
        library = BUILD.path if BUILD else "none"
        path.write_text(COMPILER.format(first=first, last=last, log=log, library=library))
        path.chmod(0o700)
        monkeypatch.setenv("CC", str(path))
        return log

    return write


@pytest.fixture
def fresh(monkeypatch):
    """A process that has not asked for the library yet."""
    monkeypatch.delenv("FDCONV_NATIVE", raising=False)
    monkeypatch.setattr(load, "_state", None)


def links(log: Path) -> int:
    """How often a library was linked."""
    return len(re.findall("-shared", log.read_text()))


@needs_native
@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
def test_is_built_once_and_is_the_users_alone(folder, quick, umask):
    log = quick()
    before = os.umask(umask)
    try:
        built, found = build(), build()
    finally:
        os.umask(before)
    assert built.path == found.path
    assert built.seconds > 0
    assert found.seconds is None
    assert links(log) == 1
    assert list(folder.iterdir()) == [built.path]
    for path in (folder.parent, folder, built.path):
        assert path.stat().st_mode & 0o777 == 0o700


@needs_compiler
def test_the_real_compiler_builds_what_works(folder, monkeypatch, fresh):
    monkeypatch.setattr("fdconv_zoo.ops.native.build.FLAGS", ("-std=gnu11", "-O1", "-fPIC"))  # takes less time
    monkeypatch.delenv("CC", raising=False)
    assert native.problem() is None
    assert native.current_build().path.parent == folder
    assert native.library().fdconv_bands_lanes() in (4, 8, 16)


@needs_native
def test_another_compiler_version_processor_or_source_is_another_library(folder, quick, monkeypatch, tmp_path):
    log = quick()
    paths = {build().path.name.partition("-")[0]}
    quick('[ "$all" = --version ] && echo "quick 2.0" && exit')
    paths.add(build().path.name.partition("-")[0])
    monkeypatch.setenv("CC", f"{tmp_path / 'quick'} -g")
    paths.add(build().path.name.partition("-")[0])
    monkeypatch.setattr("fdconv_zoo.ops.native.build._machine", lambda: "another processor")
    paths.add(build().path.name.partition("-")[0])
    sources = tmp_path / "sources"
    shutil.copytree(Path(load.__file__).parent, sources)
    with (sources / "lanes.h").open("a") as file:
        file.write("/* changed */\n")
    monkeypatch.setattr("fdconv_zoo.ops.native.build.SOURCES", sources)
    paths.add(build().path.name.partition("-")[0])
    assert links(log) == len(paths) == 5


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PATH": "", "CC": ""}, "no C compiler (cc, gcc or clang) is on PATH; install one"),
        ({"PATH": "/nowhere", "CC": "gcc -m64"}, "CC=gcc -m64 is not a program on PATH"),
        ({"CC": "/nowhere/cc"}, "CC=/nowhere/cc is not a program"),
        ({"CC": "'"}, "CC=' is not a program"),
        ({"CC": "false"}, "false failed with exit status 1: "),
    ],
)
def test_no_compiler(folder, monkeypatch, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UnavailableError, match=re.escape(message)):
        build()
    assert list(folder.iterdir()) == []


def test_a_failing_compiler_is_quoted(folder, quick):
    quick('[ "$all" != --version ] && echo "note: x\nkernels.c:1: error: no such thing" >&2 && exit 3')
    with pytest.raises(
        UnavailableError, match=r"^quick failed with exit status 3: kernels\.c:1: error: no such thing$"
    ):
        build()
    assert list(folder.iterdir()) == []


def test_a_compiler_that_hangs_is_ended_with_what_it_started(tmp_path, quick, monkeypatch):
    monkeypatch.setattr("fdconv_zoo.ops.native.build.TIMEOUT", 1.0)
    quick(f'[ "$all" != --version ] && {{ sleep 1000 & echo $! >> {tmp_path}/pids; wait; }}')
    with pytest.raises(UnavailableError, match="quick did not end in time"):
        build()
    pids = (tmp_path / "pids").read_text().split()
    assert pids
    time.sleep(0.5)
    states = [Path(f"/proc/{pid}/stat") for pid in pids]
    assert [state for state in states if state.exists() and " Z " not in state.read_text()] == []


@needs_native
@pytest.mark.parametrize("refused", ["-march=native", "=native"])
def test_other_flags_where_those_for_the_processor_are_refused(quick, refused):
    quick(f'case "$all" in *{refused}*) echo "error: bad value" >&2; exit 1;; esac')
    expected = {"-march=native": "-mcpu=native", "=native": "-fPIC"}
    assert build().flags[-1] == expected[refused]


@needs_native
@needs_compiler
@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("*(volatile int *)0 = 1; return 0;", "failed its check: python.* was killed by SIGSEGV"),
        ("return 64;", "failed its check: python.* its kernels are wrong"),
    ],
)
def test_a_library_that_crashes_or_miscomputes_is_not_taken(tmp_path, folder, quick, body, problem):
    names = ("fdconv_kernels_scratch", "fdconv_assemble_kernels", "fdconv_differentiate_kernels")
    (tmp_path / "bad.c").write_text("".join(f"long {name}(void) {{ {body} }}\n" for name in names))
    compiler.run(
        ["cc", "-shared", "-fPIC", str(tmp_path / "bad.c"), "-o", str(tmp_path / "bad.so")], time.monotonic() + 60
    )
    quick(last=f"library={tmp_path}/bad.so")
    with pytest.raises(UnavailableError, match=problem):
        build()
    assert list(folder.iterdir()) == []
    quick(last=f'case "$all" in *=native*) library={tmp_path}/bad.so;; esac')
    assert build().flags[-1] == "-fPIC"  # code that is not for this very processor may still be good


@needs_native
@pytest.mark.parametrize("damage", ["truncated", "changed", "empty"])
def test_a_damaged_library_is_built_again(folder, quick, damage):
    log = quick()
    path = build().path
    data = path.read_bytes()
    path.write_bytes({"truncated": data[: len(data) // 2], "changed": data[:-1] + b"?", "empty": b""}[damage])
    again = build()
    assert again.seconds is not None
    assert links(log) == 2
    assert again.path.read_bytes() == data
    assert list(folder.iterdir()) == [again.path]


def test_a_cache_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UnavailableError, match=f"{tmp_path}/file/fdconv_zoo/native cannot be made: Not a directory"):
        build()


def test_a_full_cache(folder, monkeypatch, quick):
    quick()

    def no_space(**kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "mkdtemp", no_space)
    with pytest.raises(UnavailableError, match=f"{folder} cannot be written to: No space left"):
        build()


def test_a_relative_cache_folder_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tmp_path in cache.open_cache().parents


@needs_native
@pytest.mark.parametrize("which", ["parent", "folder", "library"])
@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_what_others_may_write_to_is_refused(folder, quick, which, mode):
    quick()
    path = {"parent": folder.parent, "folder": folder, "library": build().path}[which]
    path.chmod(mode)
    with pytest.raises(UnavailableError, match=re.escape(f"{path} is writable by other users (mode {mode:o})")):
        build()


@needs_native
@pytest.mark.parametrize("which", ["folder", "library"])
def test_what_another_user_owns_is_refused(folder, quick, monkeypatch, which):
    quick()
    path = build().path
    if which == "folder":
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        with pytest.raises(UnavailableError, match=f"{folder.parent} belongs to another user"):
            build()
    elif os.geteuid() == 0:
        os.chown(path, 12345, -1)
        with pytest.raises(UnavailableError, match=f"{path} belongs to another user .uid 12345"):
            build()


@needs_native
@pytest.mark.parametrize("which", ["folder", "library"])
def test_links_are_refused(folder, quick, tmp_path, which):
    quick()
    path = {"folder": folder, "library": build().path}[which]
    shutil.move(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnavailableError, match=f"{path} is a symbolic link"):
        build()


def _build_path(_: int) -> Path:
    return build().path


@needs_native
def test_processes_that_build_at_once_do_not_disturb_each_other(folder, quick, tmp_path):
    # No link ends before all three processes are at theirs.
    wait = f"touch {tmp_path}/at.$$; while [ $(ls {tmp_path}/at.* | wc -l) -lt 3 ]; do sleep 0.05; done"
    log = quick(f'case "$all" in *-shared*) {wait};; esac')
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this process has threads: the children only build
        with multiprocessing.get_context("fork").Pool(3) as processes:
            paths = processes.map_async(_build_path, range(3), chunksize=1).get(timeout=120)
    assert links(log) == 3
    assert len(set(paths)) == 1
    assert list(folder.iterdir()) == [paths[0]]


@needs_native
@pytest.mark.usefixtures("fresh")
def test_threads_that_ask_at_once_build_once(quick):
    log = quick("sleep 0.05")
    with ThreadPoolExecutor(8) as threads:
        libraries = list(threads.map(lambda _: native.library(), range(8)))
    assert libraries[0] is not None
    assert all(library is libraries[0] for library in libraries)
    assert links(log) == 1


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("environment", "problem"),
    [({"FDCONV_NATIVE": "0"}, "FDCONV_NATIVE=0 is set"), ({"CC": "/nowhere"}, "CC=/nowhere is not a program")],
)
def test_without_native_code_other_operations_compute_the_same(folder, monkeypatch, environment, problem):
    layer, x = randomize(FDConv2d(20, 24, 3, padding=1)).eval(), torch.randn(2, 20, 9, 8)
    set_path(layer, "plain")
    expected = layer(x)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for path in (None, "native"):
        set_path(layer, path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    assert native.problem().startswith(problem)
    assert native.library() is None
    assert native.current_build() is None


@pytest.mark.usefixtures("fresh")
def test_a_fault_of_ours_is_a_reason_as_any_other(monkeypatch):
    def fail():
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(load, "build", fail)
    assert native.library() is None
    assert native.problem() == "ZeroDivisionError: of ours"


@needs_native
@pytest.mark.usefixtures("fresh")
def test_is_built_while_a_program_is_traced(quick):
    quick()
    torch._dynamo.reset()
    layer, x = FDConv2d(20, 24, 3, padding=1).eval(), torch.randn(2, 20, 9, 8)
    y = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    assert native.library() is not None
    set_path(layer, "plain")
    torch.testing.assert_close(y, layer(x), rtol=1e-5, atol=1e-5)


@needs_native
@pytest.mark.usefixtures("fresh")
def test_is_built_under_fake_tensors(quick):
    quick()
    with FakeTensorMode():
        assert native.library() is not None
