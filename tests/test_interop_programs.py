"""The examples of the guides about programs and LoRA compute what the model computes."""

import pytest
import torch
from examples import run_examples


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_onnx_by_tracing(tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    model = run_examples("guides/deploy.md", "ONNX by tracing")["model"]
    session = onnxruntime.InferenceSession("traced.onnx")
    x = torch.rand(1, 3, 32, 32)
    (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(logits), model(x), atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_torchscript(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = run_examples("guides/deploy.md", "TorchScript")
    assert scope["logits"].shape == (4, 10)
    x = torch.rand(3, 3, 32, 40)
    with torch.no_grad():
        for file in ("traced.pt", "scripted.pt"):
            assert torch.allclose(torch.jit.load(file)(x), scope["model"](x), atol=1e-5)


def test_fx():
    assert run_examples("guides/other_libraries.md", "torch.fx")["features"].shape == (1, 48, 8, 8)


def test_lora():
    model = run_examples("guides/other_libraries.md", "LoRA")["model"]
    assert not any("parametrizations" in name for name in model.state_dict())
