"""Describes the machine: card, versions, and two ceilings, the speed of copies and that of matrix products."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from fdconv_zoo.profiling.gpu_report.clock import interleave
from fdconv_zoo.profiling.gpu_report.section import Item, Recorder, Settings

PACKAGES = ("torch", "triton", "timm", "torchvision", "transformers", "numpy", "pytest")


def items(settings: Settings) -> list[Item]:
    """Return the items: card and versions, then the ceilings."""
    device = torch.device(settings.device)
    return [
        Item("machine", lambda recorder: _describe(recorder, device)),
        Item("ceilings", lambda recorder: _measure(recorder, device, settings.small), limit=20),
    ]


def _describe(recorder: Recorder, device: torch.device) -> None:
    facts = {"python": platform.python_version(), "cores": os.cpu_count(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = "missing"
    facts["cuda"], facts["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        facts |= {
            "card": card.name,
            "memory/GB": card.total_memory / 1e9,
            "multiprocessors": card.multi_processor_count,
            "capability": f"{card.major}.{card.minor}",
        }
    for name, value in facts.items():
        recorder.row("machine", what=name, value=value)


def _measure(recorder: Recorder, device: torch.device, small: bool) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        size = 128 if small else 8192
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        times = interleave({"product": lambda a=a, b=b: a @ b}, device, 0.5)["product"]
        name = f"product {size}x{size}x{size}, {str(dtype).removeprefix('torch.')}, TFLOP/s"
        recorder.row("ceilings", what=name, value=2 * size**3 / times.device / 1e9)
    recorder.row("ceilings", what="copy, read and written, GB/s", value=copy_bandwidth(device, small))
    empty = torch.zeros(8, device=device)

    def launches() -> None:
        for _ in range(1000):
            empty.add_(1)

    times = interleave({"launches": launches}, device, 0.5)["launches"]
    recorder.row("ceilings", what="a small operation in a row, device time, us", value=times.device)
    recorder.row("ceilings", what="a small operation in a row, host time, us", value=times.host)


def copy_bandwidth(device: torch.device, small: bool) -> float:
    """Measure the bandwidth of a copy far larger than the caches, in GB/s of bytes read plus bytes written."""
    source = torch.randn(2**14 if small else 2**30, device=device)
    target = torch.empty_like(source)
    times = interleave({"copy": lambda: target.copy_(source)}, device, 0.5)["copy"]
    return 2 * source.nbytes / times.device / 1e6
