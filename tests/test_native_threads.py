"""The C functions run on torch's own threads, and are right beside DataLoader's workers, forks and other threads.

Each test is a process of its own, since what it is about belongs to a whole process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fdconv_zoo.ops import native

pytestmark = [
    pytest.mark.skipif(native.library() is None, reason=f"no native code: {native.problem()}"),
    pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc"),
]

ROOT = Path(__file__).resolve().parents[1]

START = """
import copy, ctypes, os, sys, threading, time
import torch
from fdconv_zoo import FDConv2d, set_path
from fdconv_zoo.ops import native

torch.manual_seed(0)
layer, x = FDConv2d(24, 40, 3, padding=1), torch.randn(4, 24, 12, 12)
for parameter in layer.parameters():
    torch.nn.init.normal_(parameter, std=0.3)
layer.eval()

def run(layer=layer):
    layer.zero_grad()
    y = layer(x)
    y.square().sum().backward()
    return [y.detach()] + [parameter.grad.clone() for parameter in layer.parameters()]

def same(results, expected):
    return all((a - b).abs().max() <= 1e-4 * b.abs().max() for a, b in zip(results, expected, strict=True))

set_path(layer, "plain")
expected = run()
set_path(layer, "native")

def threads():
    return set(os.listdir("/proc/self/task"))

def identify(parts=None):
    \"\"\"The threads that parts run on, each part once.\"\"\"
    parts = parts or native.num_threads()
    seen = []
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)

    def part(job, number):
        seen.append((number, str(threading.get_native_id())))
        time.sleep(0.1)  # while another thread takes the next

    native.library().run_parts(function(part), None, ctypes.c_int64(parts))
    assert sorted(number for number, _ in seen) == list(range(parts))
    return {thread for _, thread in seen}

def in_child(function):
    \"\"\"Whether a function is true in a forked child; also false if it hangs.\"\"\"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = not function()
        finally:
            os._exit(code)
    for _ in range(600):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status == 0
        time.sleep(0.1)
    os.kill(child, 9)
    return False
"""


def run(script: str, **environment: str) -> None:
    """Run a script after `START`; it fails if it does not end with success."""
    settings = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)} | environment
    command = [sys.executable, "-W", "ignore", "-c", START + script]
    result = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


SAME_THREADS = """
torch.randn(2**20).sigmoid()  # starts torch's threads
before = threads()
used = identify()
assert len(used) == 2 and used <= before, (used, before)
assert same(run(), expected)
assert threads() == before
"""


def test_runs_on_the_threads_that_torch_has():
    run(f"""
assert native.num_threads() == torch.get_num_threads() == 2
{SAME_THREADS}
torch.set_num_threads(3)
assert len(identify()) == 3
torch.set_num_threads(1)
assert identify() == {{str(threading.get_native_id())}}
""")


def test_a_runtime_that_was_loaded_before_torchs(tmp_path):
    """An OpenMP runtime in LD_PRELOAD is the one that torch uses, though its own is loaded, too."""
    own = next((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"), None)
    if own is None:
        pytest.skip("torch brings no runtime of its own")
    other = tmp_path / own.name.replace("gomp", "mine")
    other.write_bytes(own.read_bytes().replace(own.name.encode() + b"\0", other.name.encode() + b"\0"))
    assert own.stat().st_size == other.stat().st_size
    preloaded = f"{os.environ.get('LD_PRELOAD', '')} {other}"
    run('assert "libmine" in open("/proc/self/maps").read()' + SAME_THREADS, LD_PRELOAD=preloaded)


def test_one_thread():
    script = """
before = threads()
assert same(run(), expected)
assert native.num_threads() == 1
assert threads() == before
"""
    run(script, OMP_NUM_THREADS="1")


def test_the_runtime_may_grant_fewer_threads():
    run("assert len(identify(4)) == 1", OMP_THREAD_LIMIT="1")


def test_forks():
    run("""
from fdconv_zoo.ops.native import load

def child():
    torch.set_num_threads(1)  # torch's own operations would wait forever for more
    return same(run(), expected)

def child_that_does_not_know():
    return identify() == {str(threading.get_native_id())}

assert in_child(child)  # before the library is loaded

real, started = load.build, threading.Event()

def slow():
    started.set()
    time.sleep(1)
    return real()

load.build = slow
builder = threading.Thread(target=native.library)
builder.start()
started.wait()
load.build = real
assert in_child(child)  # which does not wait for the lock of the parent's thread
builder.join()

assert same(run(), expected)
assert in_child(child)
assert in_child(child_that_does_not_know)
assert in_child(lambda: in_child(child_that_does_not_know))
assert len(identify()) == 2  # the parent goes on as before
assert same(run(), expected)
""")


def test_workers_of_a_data_loader_and_threads_of_python():
    script = """
from concurrent.futures import ThreadPoolExecutor
from torch.utils.data import DataLoader, Dataset

class Outputs(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        with torch.no_grad():
            return layer(x)

# Groups are convolved without MKL, whose products may wait forever in a forked child for threads that are gone.
layer = FDConv2d(24, 40, 3, padding=1, groups=2).eval()
for parameter in layer.parameters():
    torch.nn.init.normal_(parameter, std=0.3)
set_path(layer, "plain")
expected = run(layer)
set_path(layer, "native")

def several(_):
    mine = copy.deepcopy(layer)
    return all(same(run(mine), expected) for _ in range(5))

for _ in range(2):  # the second time, the library is loaded
    for output in DataLoader(Outputs(), batch_size=None, num_workers=2, multiprocessing_context="fork"):
        assert same([output], expected[:1])
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(several, range(4)))
"""
    run(script)
