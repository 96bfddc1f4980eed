"""Measures time and memory of FDConv on every path, of plain timm, and of the peers, in the same run."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fdconv_zoo.layers import FDConv2d, keep_kernels, set_path
from fdconv_zoo.profiling.checks import randomize_constants, randomize_modulators
from fdconv_zoo.profiling.gpu_report.clock import first_call, interleave
from fdconv_zoo.profiling.gpu_report.section import DeviceLostError, Item, Recorder, Settings
from fdconv_zoo.profiling.graphs import capture, graphable_step
from fdconv_zoo.profiling.layout import set_memory_format
from fdconv_zoo.profiling.memory import bytes_saved_for_backward, peak_bytes_of_step
from fdconv_zoo.profiling.timing import autocast, forward_step, training_step
from fdconv_zoo.profiling.twin import create_with_twin

NAME, SMALL_NAME = "resnet50_fdconv", "resnet10s_fdconv"
KEEPING = "FDConv, triton, kernels kept"

Step = Callable[[], object]
Models = Callable[[bool], dict[str, nn.Module]]  # by name, plain timm's first; in channels_last or not


class Setting(NamedTuple):
    """One block of the table.

    Attributes:
        training: measure a training step; otherwise a forward pass.
        batch: number of images.
        size: (H, W).
        dtype: autocast dtype; float32 disables autocast.
        channels_last: whether weights and images are channels_last.
        benchmark: let cuDNN try its algorithms.
        seconds: duration of the timing, for all models together.
    """

    training: bool
    batch: int
    size: tuple[int, int]
    dtype: torch.dtype = torch.bfloat16
    channels_last: bool = True
    benchmark: bool = False
    seconds: float = 2

    def describe(self) -> str:
        """Describe the setting in words."""
        step = "training step" if self.training else "forward"
        dtype = str(self.dtype).removeprefix("torch.")
        layout = "channels_last" if self.channels_last else "contiguous"
        text = f"{step}, {self.batch} x {self.size[0]}x{self.size[1]}, {dtype}, {layout}"
        return text + (", cudnn.benchmark" if self.benchmark else "")

    def images(self, device: torch.device) -> Tensor:
        """Draw images of noise, each with its own mean colour; otherwise, their kernels would hardly differ."""
        x = torch.randn(self.batch, 3, *self.size) + torch.randn(self.batch, 3, 1, 1)
        return x.to(device, memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)

    def step(self, model: nn.Module, x: Tensor) -> Step:
        """Make the step to time."""
        if self.training:
            return training_step(model.train(), x, self.dtype)
        return forward_step(model.eval(), x, self.dtype)


DETECTION, CLASSIFICATION = (800, 1344), (224, 224)
SETTINGS = (Setting(False, 1, DETECTION), Setting(True, 2, DETECTION), Setting(True, 64, CLASSIFICATION))
MORE_SETTINGS = (
    Setting(True, 2, DETECTION, channels_last=False),
    Setting(False, 1, DETECTION, torch.float32, channels_last=False),
    Setting(True, 64, CLASSIFICATION, torch.float32),
    Setting(False, 1, DETECTION, channels_last=False),
    Setting(True, 64, CLASSIFICATION, channels_last=False),
    Setting(True, 2, DETECTION, benchmark=True),
    Setting(True, 64, CLASSIFICATION, benchmark=True),
)
SMALL_SETTINGS = (
    Setting(False, 1, (32, 48), seconds=0),
    Setting(True, 2, (32, 32), torch.float32, channels_last=False, seconds=0),
)
MEMORY, SMALL_MEMORY = Setting(True, 16, CLASSIFICATION), Setting(True, 2, (32, 32))


def items(settings: Settings) -> list[Item]:
    """Return the items: the table, eager and as CUDA graphs, and memory; then more settings, paths and compilation."""
    small, device = settings.small, torch.device(settings.device)
    build = cache(partial(build_models, settings, device))

    def models(channels_last: bool, names: Sequence[str]) -> dict[str, nn.Module]:
        found = {name: model for name, model in build().items() if name in names}
        for model in found.values():
            set_memory_format(model, torch.channels_last if channels_last else torch.contiguous_format)
        return found

    paths = [f"FDConv, {path}" for path in reversed(settings.paths)]
    # Plain timm and the newest path come first: the other paths are for other devices.
    chief, rest, peers = ["plain", *paths[:1]], paths[1:], list(settings.peers)
    keeping = [KEEPING] if "triton" in settings.paths else []  # it differs only in training
    table = SMALL_SETTINGS if small else SETTINGS

    def time(setting: Setting, names: list[str], kind: str = "") -> Item:
        run = {"": _time, "CUDA graph, ": _time_graphs, "torch.compile, ": _time_compiled}[kind]
        name = f"{kind}{setting.describe()}: {', '.join(names)}"
        return Item(name, partial(run, setting, partial(models, names=names), device), limit=150 if kind else 60)

    setting = SMALL_MEMORY if small else MEMORY
    memory = partial(_measure_memory, setting, partial(models, names=[*chief, *keeping, *peers, *rest]), device)
    is_gpu = device.type == "cuda"
    graphs = [time(setting, chief + keeping * setting.training, "CUDA graph, ") for setting in table if is_gpu]
    peer_graphs = [time(setting, ["plain", *peers], "CUDA graph, ") for setting in table if is_gpu and peers]
    return [
        *graphs,
        *(time(setting, [*chief, *keeping * setting.training, *peers]) for setting in table),
        Item(f"memory, {setting.describe()}", memory),
        *peer_graphs,
        *(time(setting, chief) for setting in (() if small else MORE_SETTINGS)),
        *(time(setting, ["plain", *rest]) for setting in table),
        *(time(setting, chief, "torch.compile, ") for setting in table[:2] if is_gpu),
    ]


def build_models(settings: Settings, device: torch.device) -> dict[str, nn.Module]:
    """Build models by name: "plain" (timm's), FDConv on each path, the newest first, and keeping kernels, and peers."""
    torch.manual_seed(0)
    plain, model = create_with_twin(SMALL_NAME if settings.small else NAME).values()
    model.load_state_dict(plain.state_dict())
    randomize_modulators(model)
    found = {"plain": plain}
    for path in reversed(settings.paths):
        found[f"FDConv, {path}"] = own = copy.deepcopy(model)
        set_path(own, path)
    if "triton" in settings.paths:
        found[KEEPING] = own = copy.deepcopy(found["FDConv, triton"])
        keep_kernels(own)
    replaced = [name for name, layer in model.named_modules() if isinstance(layer, FDConv2d)]
    for name, peer in settings.peers.items():
        found[name] = other = copy.deepcopy(plain)
        settings.replace_layers(other, replaced, peer)
        randomize_constants(other)
    return {name: model.to(device) for name, model in found.items()}


def _time(setting: Setting, models: Models, device: torch.device, recorder: Recorder) -> None:
    x, steps, firsts = setting.images(device), {}, {}
    with torch.backends.cudnn.flags(enabled=True, benchmark=setting.benchmark, allow_tf32=True):
        for name, model in models(setting.channels_last).items():
            with recorder.attempt(name):
                step = setting.step(model, x)
                firsts[name] = first_call(step, device)
                steps[name] = step
        _record_times(setting, "", steps, firsts, device, recorder)
    for model in models(setting.channels_last).values():
        model.zero_grad(set_to_none=True)


def _record_times(
    setting: Setting,
    kind: str,
    steps: Mapping[str, Step],
    firsts: Mapping[str, float],
    device: torch.device,
    recorder: Recorder,
) -> None:
    table = kind + setting.describe()
    times = interleave(steps, device, min(setting.seconds, recorder.seconds_left / 2))
    plain = times.get("plain")
    for name, own in times.items():
        figures = {"device/ms": own.device, "x plain": plain and own.device / plain.device}
        figures |= {"host/ms": own.host, "host x plain": plain and own.host / plain.host}
        recorder.row(table, model=name, **figures, **{"first call/s": firsts[name]})


def _measure_memory(setting: Setting, models: Models, device: torch.device, recorder: Recorder) -> None:
    """Measure the peak memory of a training step on a GPU, and the bytes kept for the backward pass."""
    x, plain = setting.images(device), {}
    for name, model in models(setting.channels_last).items():
        with recorder.attempt(name):
            figures, step = {}, setting.step(model, x)
            step()
            if device.type == "cuda":
                figures["peak/MB"] = peak_bytes_of_step(model, x, step) / 1e6
            with autocast(device, setting.dtype):
                figures["kept for backward/MB"] = bytes_saved_for_backward(model, x) / 1e6
            plain = plain or figures
            row: dict[str, Any] = {"model": name}
            for key, value in figures.items():
                row |= {key: value, f"{key.partition('/')[0]} x plain": value / plain[key]}
            recorder.row(f"memory, {setting.describe()}", **row)
        model.zero_grad(set_to_none=True)


def _time_graphs(setting: Setting, models: Models, device: torch.device, recorder: Recorder) -> None:
    """Time replayed CUDA graphs, in which launches cost nothing."""
    x, replays, firsts = setting.images(device), {}, {}
    lost = False
    for name, model in models(setting.channels_last).items():
        step = graphable_step(model, x, setting.dtype, training=setting.training)
        try:
            with recorder.attempt(name, leaves_device=False):
                firsts[name] = first_call(lambda name=name, step=step: replays.update({name: capture(step)[0]}), device)
        except DeviceLostError:  # no more captures are possible, but finished ones can be replayed
            lost = True
            break
    _record_times(setting, "CUDA graph, ", replays, firsts, device, recorder)
    if lost:
        raise DeviceLostError


def _time_compiled(setting: Setting, models: Models, device: torch.device, recorder: Recorder) -> None:
    """Time plain timm and FDConv on its newest path, compiled without CUDA graphs."""
    x, steps, firsts = setting.images(device), {}, {}
    for name, model in models(setting.channels_last).items():
        with recorder.attempt(name):
            torch._dynamo.reset()
            step = setting.step(torch.compile(model, fullgraph=True), x)
            firsts[name] = first_call(step, device)
            steps[name] = step
    _record_times(setting, "torch.compile, ", steps, firsts, device, recorder)
