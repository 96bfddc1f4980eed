"""Exported programs compute what the model computes, at sizes and batches other than the example's."""

import pytest
import timm
import torch
from conftest import relative_error
from examples import run_examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fdconv_zoo.ops.dft_by_products import inverse_transform_by_products

# One reduced model of each family, with layers of every kind that the family has. Stages of 16 or fewer channels are
# plain, and ConvNeXt's have no blocks: torch's exporter needs seconds for each FDConv layer and each plain block.
FAMILIES = [
    ("resnet50_fdconv", dict(layers=(1, 1, 1, 1), channels=(8, 8, 8, 24))),
    ("convnext_atto_fdconv", dict(depths=(0, 0, 0, 1), dims=(8, 8, 16, 24), ls_init_value=None)),
    ("swin_fdconv", dict(embed_dim=24, depths=(2,), num_heads=(2,), img_size=56, strict_img_size=False)),
]


def off_neutral(model):
    """Draw what starts at zero, the last layers of the modulators, so that every part has an effect."""
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, 0, 0.3)
    return model.eval()


def run(file, x):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def needs_exporter():
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason="torch's exporter to ONNX needs onnx and onnxscript")


def export_free(model, images):
    """A program whose batch size, height and width are dynamic."""
    store = pytest.importorskip("fdconv_zoo.store.onnx", reason="onnxruntime is not installed")
    return store.export_program(model, (images,), dynamic_shapes=({0: "batch", 2: "height", 3: "width"},))


@pytest.mark.parametrize(("name", "reduced"), FAMILIES)
def test_onnx_of_free_batch_and_size(tmp_path, name, reduced):
    needs_exporter()
    model = off_neutral(timm.create_model(name, num_classes=10, **reduced))
    program = export_free(model, torch.randn(2, 3, 64, 64))
    assert not [node for node in program.model.graph if node.op_type == "DFT"]
    file = str(tmp_path / "model.onnx")
    program.save(file)
    for shape in ((2, 3, 64, 64), (1, 3, 96, 80), (3, 3, 52, 100)):
        x = torch.randn(shape)
        with torch.no_grad():
            assert relative_error(run(file, x), model(x)) < 1e-5


def test_onnx_example(tmp_path, monkeypatch):
    needs_exporter()
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    monkeypatch.chdir(tmp_path)
    model, x = run_examples("guides/deploy.md", "ONNX in Python")["model"], torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(run("convnext.onnx", x), model(x)) < 1e-5


@settings(max_examples=30)
@given(rows=st.integers(1, 60), cols=st.integers(1, 60), batch=st.integers(1, 3))
def test_inverse_transform_by_products(rows, cols, batch):
    """What exports to ONNX take for torch's transforms; also of coefficients that training has made non-Hermitian."""
    coefficients = torch.randn(batch, rows, cols // 2 + 1, 2, dtype=torch.float64)
    columns = torch.fft.ifft(torch.view_as_complex(coefficients), dim=1)
    expected = torch.fft.irfft(columns, n=cols, dim=2).transpose(1, 2)
    assert relative_error(inverse_transform_by_products(coefficients, rows, cols), expected) < 1e-12
    single = inverse_transform_by_products(coefficients.float(), rows, cols)
    assert relative_error(single, expected) < 1e-5


def test_torch_export_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = run_examples("guides/deploy.md", "torch.export")
    with torch.no_grad():
        assert relative_error(scope["logits"], scope["model"](scope["images"])) < 1e-5


def test_torch_export_there_and_back(tmp_path):
    model = off_neutral(timm.create_model("resnet10s_fdconv"))
    x = torch.randn(2, 3, 32, 32)
    torch.export.save(torch.export.export(model, (x,), strict=False), tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert relative_error(program(x), model(x)) < 1e-5
