"""`fdconv-zoo doctor`."""

import json

import pytest
import timm
import torch

import fdconv_zoo
from fdconv_zoo.__main__ import main
from fdconv_zoo.ops import native, triton_support
from fdconv_zoo.ops.native import load


@pytest.fixture
def doctor(capsys):
    def doctor() -> dict[str, str]:
        main(["doctor", "--json"])
        return json.loads(capsys.readouterr().out)

    return doctor


def test_versions_and_threads(doctor):
    found = doctor()
    assert found["fdconv-zoo"] == fdconv_zoo.__version__
    assert found["torch"] == torch.__version__
    assert found["timm"] == timm.__version__
    assert found["threads"].startswith(f"{torch.get_num_threads()} of torch, on ")


def test_lines_are_aligned_and_say_the_same(doctor, capsys):
    found = doctor()
    main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    column = max(map(len, found)) + 2
    assert [(line[:column].rstrip(), line[column:]) for line in lines] == list(found.items())


@pytest.mark.skipif(native.library() is None, reason=f"no native code: {native.problem()}")
def test_native_code(doctor):
    found = doctor()
    build = native.current_build()
    assert found["library"] == str(build.path)
    assert build.compiler.command[0] in found["compiler"]
    assert "-O3" in found["flags"].split()
    assert f"threads: {torch.get_num_threads()}" in found["native code"]
    assert found["path on cpu"] == "native; in float64 rebuild"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [("FDCONV_NATIVE", "0", "FDCONV_NATIVE=0 is set"), ("CC", "/no/cc", "CC=/no/cc is not a program on PATH; correct")],
)
def test_no_native_code(doctor, monkeypatch, tmp_path, name, value, reason):
    monkeypatch.delenv("FDCONV_NATIVE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(load, "_state", None)
    found = doctor()
    assert found["native code"].startswith(f"none: {reason}")
    assert found["path on cpu"] == "rebuild; in float64 rebuild"
    assert not {"library", "compiler", "flags"} & found.keys()


def test_triton(doctor, monkeypatch):
    monkeypatch.setattr(triton_support, "triton", None)
    assert doctor()["Triton"] == "not installed"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.skipif(triton_support.version() is None, reason="no Triton")
def test_no_gpu(doctor):
    found = doctor()
    assert found["GPU"] == "none that torch can use"
    assert found["Triton"] == f"{triton_support.version()}, not used: {triton_support.problem()}"
    assert "path on cuda" not in found


@pytest.mark.parametrize("is_used", [True, False])
def test_gpus(doctor, monkeypatch, is_used):
    class Gpu:
        name, major, minor = "H100", 9, 0

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: Gpu)
    monkeypatch.setattr(triton_support, "problem", lambda device_type="cuda": None if is_used else "it is too old")
    monkeypatch.setattr(triton_support, "version", lambda: "9.9")
    found = doctor()
    assert found["GPU"] == "H100 (compute capability 9.0), H100 (compute capability 9.0)"
    assert found["Triton"] == ("9.9" if is_used else "9.9, not used: it is too old")
    assert found["path on cuda"].startswith("triton;" if is_used else "rebuild;")
