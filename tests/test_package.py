"""The wheel and the sdist are complete, and the wheel works on its own."""

import ast
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import fdconv_zoo

ROOT = Path(__file__).resolve().parents[1]

CHECK = """
import sys
import timm, fdconv_zoo
assert fdconv_zoo.__file__.startswith(sys.argv[1]), fdconv_zoo.__file__
heavy = {"datasets", "accelerate", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
assert "resnet50_fdconv" in timm.list_models("*_fdconv")
timm.create_model("resnet10s_fdconv", pretrained=True)
from fdconv_zoo.data import SAMPLE, load_image_data
from fdconv_zoo.index import read_index
print(*read_index(), len(load_image_data(SAMPLE, split="validation").validation))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build wheel and sdist from the working tree."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return folder


def test_wheel_works_on_its_own(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert {name.partition("/")[0] for name in names if "dist-info" not in name} == {"fdconv_zoo"}
    assert {"fdconv_zoo/sample/train.parquet", "fdconv_zoo/sample/LICENSE"} <= set(names)
    assert {"fdconv_zoo/index/card_template.md", "fdconv_zoo/index/citations.bib"} <= set(names)
    assert "fdconv_zoo/analysis/page_template.html" in names
    assert "fdconv_zoo/pretrained/resnet10s_fdconv.fashion_mnist.safetensors" in names
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "fdconv_zoo").rglob("*.[ch]")}
    assert sources
    assert sources <= set(names)
    entries = {path.name for path in (ROOT / "models").glob("*.yaml")}
    assert {f"fdconv_zoo/models/{name}" for name in entries} <= set(names)
    (points,) = [name for name in names if name.endswith("entry_points.txt")]
    assert "fdconv-zoo = fdconv_zoo.__main__:main" in zipfile.ZipFile(wheel).read(points).decode().splitlines()
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("licenses/fdconv_zoo/sample/LICENSE") for name in names)
    assert "fdconv_zoo/py.typed" in names
    helps = {str(path.relative_to(ROOT)) for path in (ROOT / "fdconv_zoo" / "cli" / "help").glob("*.txt")}
    assert helps
    assert helps <= set(names)

    site = str(tmp_path / "site")
    script = f"import sys; sys.path.insert(0, {site!r}); sys.argv = ['', {site!r}]\n{CHECK}"
    environment = {"PATH": "", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    *found, size = result.stdout.split()
    assert size == "1000"
    assert {f"{name}.yaml" for name in found} == entries

    launch = [*("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"), "-m", "fdconv_zoo", "train"]
    flags = ["--config", "resnet10s_fdconv.fashion_mnist.demo", "--smoke", "--output", "run"]
    trained = subprocess.run(
        [sys.executable, *launch, *flags],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": site, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_sdist_is_complete(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in (
        "LICENSE",
        "README.md",
        "Makefile",
        "scripts/train.py",
        "models/resnet50_fdconv.a1_in1k.yaml",
        "fdconv_zoo/ops/native/kernels.c",
        "fdconv_zoo/ops/native/lanes.h",
    ):
        assert name in names


def test_what_the_package_imports_is_required():
    """Imports of other distributions when a module is loaded, by the package or by one of its extras."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    chosen = [extras[name] for name in ("train", "dense", "analysis", "export", "completion")]
    requirements = [Requirement(line) for line in sum(chosen, project["dependencies"]) if "fdconv-zoo" not in line]
    assert all(requirement.specifier for requirement in requirements)
    imported = set()
    for path in (ROOT / "fdconv_zoo").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    called = {"PIL": "pillow", "yaml": "pyyaml"}
    others = {called.get(name, name) for name in imported - sys.stdlib_module_names - {"fdconv_zoo"}}
    required = {requirement.name.replace("-", "_") for requirement in requirements}
    assert others - required == {"triton"}  # comes with torch where there is a GPU


def test_version_is_exposed():
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", fdconv_zoo.__version__)
