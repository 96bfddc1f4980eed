"""Time and memory of models beside plain timm, the paths and the peers in the same run."""

import copy
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fdconv_zoo.layers import FDConv2d, set_path
from fdconv_zoo.profiling.checks import randomize_constants, randomize_modulators
from fdconv_zoo.profiling.gpu_report.clock import first_call, interleave
from fdconv_zoo.profiling.gpu_report.section import DeviceLostError, Item, Recorder, Settings
from fdconv_zoo.profiling.graphs import capture, graphable_step
from fdconv_zoo.profiling.layout import set_memory_format
from fdconv_zoo.profiling.memory import bytes_saved_for_backward, peak_bytes_of_step
from fdconv_zoo.profiling.timing import autocast, forward_step, training_step
from fdconv_zoo.profiling.twin import create_with_twin

NAME, SMALL_NAME = "resnet50_fdconv", "resnet10s_fdconv"

Step = Callable[[], object]
Models = Callable[[bool], dict[str, nn.Module]]  # by name, plain timm's first, in channels_last or not


class Setting(NamedTuple):
    """One block of the table.

    Attributes:
        training: a training step, not a forward pass.
        batch: number of images.
        size: (H, W).
        dtype: of autocast; float32 disables it.
        channels_last: memory format of weights and images.
        benchmark: let cuDNN try its algorithms.
    """

    training: bool
    batch: int
    size: tuple[int, int]
    dtype: torch.dtype = torch.bfloat16
    channels_last: bool = True
    benchmark: bool = False

    def describe(self) -> str:
        """The setting in words."""
        step = "training step" if self.training else "forward"
        dtype = str(self.dtype).removeprefix("torch.")
        layout = "channels_last" if self.channels_last else "contiguous"
        text = f"{step}, {self.batch} x {self.size[0]}x{self.size[1]}, {dtype}, {layout}"
        return text + (", cudnn.benchmark" if self.benchmark else "")

    def images(self, device: torch.device) -> Tensor:
        """Each with a mean colour of its own, without which kernels of noise would hardly differ."""
        x = torch.randn(self.batch, 3, *self.size) + torch.randn(self.batch, 3, 1, 1)
        return x.to(device, memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)

    def step(self, model: nn.Module, x: Tensor) -> Step:
        """What is timed."""
        if self.training:
            return training_step(model.train(), x, self.dtype)
        return forward_step(model.eval(), x, self.dtype)


DETECTION, CLASSIFICATION = (800, 1344), (224, 224)
SETTINGS = (
    Setting(False, 1, DETECTION),
    Setting(True, 2, DETECTION),
    Setting(True, 64, CLASSIFICATION),
    Setting(False, 1, DETECTION, channels_last=False),
    Setting(True, 2, DETECTION, channels_last=False),
    Setting(True, 64, CLASSIFICATION, channels_last=False),
    Setting(False, 1, DETECTION, torch.float32, channels_last=False),
    Setting(False, 64, CLASSIFICATION, torch.float32, channels_last=False),
    Setting(True, 2, DETECTION, benchmark=True),
    Setting(True, 64, CLASSIFICATION, benchmark=True),
)
SMALL_SETTINGS = (Setting(False, 1, (32, 48)), Setting(True, 2, (32, 32), torch.float32, channels_last=False))
MEMORY, SMALL_MEMORY = Setting(True, 16, CLASSIFICATION), Setting(True, 2, (32, 32))


def items(settings: Settings) -> list[Item]:
    """Times of the settings, with memory after the first three; on a GPU also CUDA graphs and torch.compile."""
    small, device = settings.small, torch.device(settings.device)
    build = cache(partial(build_models, settings, device))

    def models(channels_last: bool) -> dict[str, nn.Module]:
        for model in build().values():
            set_memory_format(model, torch.channels_last if channels_last else torch.contiguous_format)
        return build()

    times = [
        Item(setting.describe(), partial(_time, setting, models, 0.2 if small else 4, device))
        for setting in (SMALL_SETTINGS if small else SETTINGS)
    ]
    setting = SMALL_MEMORY if small else MEMORY
    memory = Item(f"memory, {setting.describe()}", partial(_measure_memory, setting, models, device))
    if device.type != "cuda":
        return [*times[:3], memory, *times[3:]]
    graphs = [
        Item(f"CUDA graph, {setting.describe()}", partial(_time_graphs, setting, models, device))
        for setting in (SMALL_SETTINGS if small else SETTINGS[:3])
    ]
    compiled = [
        Item(f"torch.compile, {setting.describe()}", partial(_time_compiled, setting, models, device), limit=150)
        for setting in (SMALL_SETTINGS if small else SETTINGS[:2])
    ]
    return [*times[:3], memory, *graphs, *times[3:], *compiled]


def build_models(settings: Settings, device: torch.device) -> dict[str, nn.Module]:
    """By name: "plain" timm, FDConv on each path, the newest first, and the peers."""
    torch.manual_seed(0)
    plain, model = create_with_twin(SMALL_NAME if settings.small else NAME).values()
    model.load_state_dict(plain.state_dict())
    randomize_modulators(model)
    found = {"plain": plain}
    for path in reversed(settings.paths):
        found[f"FDConv, {path}"] = own = copy.deepcopy(model)
        set_path(own, path)
    replaced = [name for name, layer in model.named_modules() if isinstance(layer, FDConv2d)]
    for name, peer in settings.peers.items():
        found[name] = other = copy.deepcopy(plain)
        settings.replace_layers(other, replaced, peer)
        randomize_constants(other)
    return {name: model.to(device) for name, model in found.items()}


def _time(setting: Setting, models: Models, seconds: float, device: torch.device, recorder: Recorder) -> None:
    x, steps, firsts = setting.images(device), {}, {}
    with torch.backends.cudnn.flags(enabled=True, benchmark=setting.benchmark, allow_tf32=True):
        for name, model in models(setting.channels_last).items():
            with recorder.attempt(name):
                step = setting.step(model, x)
                firsts[name] = first_call(step, device)
                steps[name] = step
        _record_times(setting.describe(), steps, firsts, seconds, device, recorder)


def _record_times(
    table: str,
    steps: Mapping[str, Step],
    firsts: Mapping[str, float],
    seconds: float,
    device: torch.device,
    recorder: Recorder,
) -> None:
    times = interleave(steps, device, min(seconds, recorder.seconds_left / 2))
    plain = times.get("plain")
    for name, own in times.items():
        figures = {"device/ms": own.device, "x plain": plain and own.device / plain.device}
        figures |= {"host/ms": own.host, "host x plain": plain and own.host / plain.host}
        recorder.row(table, model=name, **figures, **{"first call/s": firsts[name]})


def _measure_memory(setting: Setting, models: Models, device: torch.device, recorder: Recorder) -> None:
    """Peak memory of a training step on a GPU, and what is kept for backward."""
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
    """Replayed CUDA graphs: the time that is left when launches cost nothing."""
    x, replays, firsts = setting.images(device), {}, {}
    lost = False
    # Each graph keeps its memory for itself: no room for the plain path, which needs most, nor for the peers.
    names = [name for name in models(setting.channels_last) if name == "plain" or name.startswith("FDConv")]
    for name in (name for name in names if name != "FDConv, plain"):
        step = graphable_step(models(setting.channels_last)[name], x, setting.dtype, training=setting.training)
        try:
            with recorder.attempt(name, leaves_device=False):
                firsts[name] = first_call(lambda name=name, step=step: replays.update({name: capture(step)[0]}), device)
        except DeviceLostError:  # for more captures, not for the replay of those that are done
            lost = True
            break
    _record_times(f"CUDA graph, {setting.describe()}", replays, firsts, 2, device, recorder)
    if lost:
        raise DeviceLostError


def _time_compiled(setting: Setting, models: Models, device: torch.device, recorder: Recorder) -> None:
    """Plain timm and FDConv on its newest path, compiled without CUDA graphs."""
    x, steps, firsts = setting.images(device), {}, {}
    for name, model in list(models(setting.channels_last).items())[:2]:
        with recorder.attempt(name):
            torch._dynamo.reset()
            step = setting.step(torch.compile(model, fullgraph=True), x)
            firsts[name] = first_call(step, device)
            steps[name] = step
    _record_times(f"torch.compile, {setting.describe()}", steps, firsts, 2, device, recorder)
