"""temporary"""

import ctypes
import functools
import os
import subprocess
from pathlib import Path

import torch


@functools.cache
def library():
    if os.environ.get("FDCONV_NATIVE") == "0":
        return None
    here = Path(__file__).parent
    so = os.environ.get("TMP_SO", "/tmp/fdconv_tmp.so")
    if "TMP_SO" not in os.environ:
        subprocess.check_call(
            [
                "gcc",
                "-O3",
                "-march=native",
                "-std=gnu11",
                "-fno-math-errno",
                "-fno-trapping-math",
                "-fPIC",
                "-shared",
                "-o",
                so,
                *map(str, here.glob("*.c")),
                "-lm",
            ]
        )
    lib = ctypes.CDLL(so)
    core = ctypes.CDLL(torch.__path__[0] + "/lib/libtorch_cpu.so")
    lib.fdconv_set_parallel.argtypes = [ctypes.c_void_p]
    lib.fdconv_set_parallel(ctypes.cast(core.GOMP_parallel, ctypes.c_void_p))
    lib.fdconv_kernels_scratch.restype = ctypes.c_int64
    return lib


def num_threads():
    return torch.get_num_threads()
