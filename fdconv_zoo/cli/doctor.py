"""Report on the installation: versions, devices, native code, and the path that each device takes."""

import os
import platform
import shlex
import warnings

import timm
import torch

from fdconv_zoo.ops import choose_path, native, triton_support
from fdconv_zoo.version import __version__

DESCRIPTION = "Print what FDConv runs on here: versions, devices, native code, and the path that each device takes."


def diagnose() -> dict[str, str]:
    """Return the lines of the report by name. Compiles the native code if it has not been compiled yet."""
    found = {
        "fdconv-zoo": __version__,
        "Python": f"{platform.python_version()} on {platform.platform()}",
        "torch": torch.__version__,
        "timm": timm.__version__,
        "threads": f"{torch.get_num_threads()} of torch, on {_num_processors()} processors",
        "GPU": _gpus(),
        "Triton": _triton(),
        **_native_code(),
    }
    for device_type in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        found[f"path on {device_type}"] = _path(torch.device(device_type))
    return found


def _num_processors() -> int:
    """Return the number of processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "none that torch can use"
    properties = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return ", ".join(f"{gpu.name} (compute capability {gpu.major}.{gpu.minor})" for gpu in properties)


def _triton() -> str:
    version, problem = triton_support.version(), triton_support.problem()
    if version is None:
        return "not installed"
    return f"{version}, not used: {problem}" if problem else version


def _native_code() -> dict[str, str]:
    build = native.current_build()
    if build is None:
        return {"native code": f"none: {native.problem()}"}
    origin = "found in the cache" if build.seconds is None else f"compiled in {build.seconds:.1f} s"
    num_lanes = native.library().fdconv_bands_lanes()
    return {
        "native code": f"{origin}; vectors of {num_lanes} floats, threads: {native.num_threads()}",
        "compiler": build.compiler.name,
        "flags": shlex.join(build.flags),
        "library": str(build.path),
    }


def _path(device: torch.device) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report says the same
        paths = {dtype: choose_path(device, dtype) for dtype in (torch.float32, torch.float64)}
    return f"{paths[torch.float32]}; in float64 {paths[torch.float64]}"
