"""Profiles steps: the kernels that take most of the time, and the memory bandwidth of Triton's kernels."""

from collections import defaultdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from fdconv_zoo.profiling.gpu_report.clock import synchronize
from fdconv_zoo.profiling.gpu_report.environment import copy_bandwidth
from fdconv_zoo.profiling.gpu_report.section import Item, Recorder, Settings
from fdconv_zoo.profiling.gpu_report.speed import CLASSIFICATION, DETECTION, Setting, build_models
from fdconv_zoo.profiling.triton_launches import observed_launches

SETTINGS = (Setting(True, 2, DETECTION), Setting(True, 64, CLASSIFICATION), Setting(False, 1, DETECTION))
SMALL_SETTINGS = (Setting(True, 2, (32, 32)),)
ROWS = 30


def items(settings: Settings) -> list[Item]:
    """Return one item for each setting and model, without the peers."""
    device, found = torch.device(settings.device), []
    models: dict[str, nn.Module] = {}

    def run(setting: Setting, name: str, recorder: Recorder) -> None:
        if not models:
            models.update(build_models(settings, device))
        model = models[name].to(memory_format=torch.channels_last)
        _profile(setting, name, model, device, settings.small, recorder)

    chief, *others = (f"FDConv, {path}" for path in reversed(settings.paths))
    for names in ([chief, "plain"], others):
        for setting in SMALL_SETTINGS if settings.small else SETTINGS:
            found += [Item(f"{name}, {setting.describe()}", partial(run, setting, name)) for name in names]
    return found


def _profile(
    setting: Setting, name: str, model: nn.Module, device: torch.device, small: bool, recorder: Recorder
) -> None:
    x = setting.images(device)
    step = setting.step(model, x)
    for _ in range(2):
        step()
    synchronize(device)
    moved: dict[str, int] = defaultdict(int)

    def observe(kernel: str, tensors: list[Tensor]) -> None:
        moved[kernel] += sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with observed_launches(observe, execute=True), profile(activities=activities, acc_events=True) as found:
        step()
        synchronize(device)
    kernels = _kernels(found, device)
    busy = sum(time for _, _, time in kernels)
    recorder.row(
        "what the device does in a step",
        setting=setting.describe(),
        model=name,
        launches=sum(count for _, count, _ in kernels),
        **{"busy/ms": busy / 1e3, "kinds of kernels": len(kernels)},
    )
    for kernel, count, time in kernels[:ROWS]:
        share = f"{time / busy:.1%}" if busy else ""
        row = {"kernel": kernel[:110], "launches": count, "us": time, "share": share}
        recorder.row(f"{name}, {setting.describe()}", **row)
    copy = copy_bandwidth(device, small) if moved else 0
    for kernel, count, time in kernels:
        if time and moved.get(kernel):
            rate = moved[kernel] / time / 1e3
            recorder.row(
                "Triton kernels: bytes of all their tensors, each once, by time",
                setting=setting.describe(),
                kernel=kernel,
                launches=count,
                **{"MB": moved[kernel] / 1e6, "us": time, "GB/s": rate, "of a copy": rate / copy},
            )


def _kernels(found: Any, device: torch.device) -> list[tuple[str, int, float]]:
    """Name, launches and microseconds of each kernel, the slowest first; on a CPU, of torch's operations."""
    kernels = []
    for event in found.key_averages():
        if device.type != "cuda":
            kernels.append((event.key, event.count, event.self_cpu_time_total))
        elif event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            kernels.append((event.key, event.count, event.self_device_time_total))
    return sorted(kernels, key=lambda kernel: -kernel[2])
