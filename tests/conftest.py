import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The tests never reach a hub; without this a slip would wait for a network that is not there.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as in scripts/calm_threads.py, before torch

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from hypothesis import settings
from loopback_hub import ConnectedHub, connect

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores

needs_cpp_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile's default backend needs a C++ compiler"
)

settings.register_profile("default", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that need a GPU where there is none."""
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[ConnectedHub]:
    """A Hub on this machine, in place of the real one for all that uses its client here; the cache is empty."""
    with connect(tmp_path / "hub_home") as connected:
        yield connected


@pytest.fixture
def datasets_cache(tmp_path: Path, monkeypatch) -> Path:
    """An empty cache for `datasets`, instead of the user's."""
    import datasets

    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", folder / "downloads")
    monkeypatch.setattr(datasets.config, "EXTRACTED_DATASETS_PATH", folder / "extracted")
    return folder


@pytest.fixture
def on_one_cpu_thread(monkeypatch):
    """Training in this process, which leaves accelerate as new."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@contextmanager
def blank_pictures() -> Iterator[None]:
    """Leave matplotlib's figures blank where they are saved: drawing is a third of the time of a small run."""
    from matplotlib.figure import Figure  # only for the tests that need it
    from PIL import Image

    def save_blank(figure: Figure, target: Path, **_) -> None:
        Image.new("RGB", (1, 1)).save(target, "PNG")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save_blank)
        yield


@pytest.fixture(name="blank_pictures")
def _blank_pictures():
    """For tests of runs; those of fixtures with a wider scope, which come before, are drawn."""
    with blank_pictures():
        yield


@pytest.fixture(scope="session")
def small_canvases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small version of the demo data: 16 images to train on, 5 to validate on."""
    from fdconv_zoo.dense.canvases import write_canvases  # only for the tests that need it

    folder = tmp_path_factory.mktemp("data") / "canvases"
    write_canvases(folder, train=16, validation=5, size=48)
    return folder


def randomize(module: torch.nn.Module, std: float = 0.3) -> torch.nn.Module:
    """Move every parameter and running statistic away from its neutral start."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn_like(parameter)
            if "spectrum" in name:
                parameter.mul_(1 + 0.1 * noise).add_(parameter.std() * 0.1 * noise)
            else:
                parameter.add_(std * noise)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.3)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return module


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest deviation as a fraction of the largest expected value."""
    difference = (actual.double() - expected.double()).abs().max()
    return (difference / expected.double().abs().max().clamp_min(1e-300)).item()
