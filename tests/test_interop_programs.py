"""The examples of docs/interoperation.md about programs, derivatives and LoRA."""

import pytest
import torch
from examples import run_examples


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_onnx_by_tracing(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    file = str(tmp_path / "model.onnx")
    model = run_examples("interoperation.md", "ONNX by tracing", file=file)["model"]
    session = onnxruntime.InferenceSession(file)
    x = torch.rand(1, 3, 32, 32)
    (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(logits), model(x), atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_torchscript(tmp_path):
    scope = run_examples("interoperation.md", "TorchScript", file=str(tmp_path / "model.pt"))
    assert scope["logits"].shape == (4, 10)


def test_fx():
    assert run_examples("interoperation.md", "torch.fx")["features"].shape == (1, 48, 8, 8)


def test_lora():
    model = run_examples("interoperation.md", "LoRA")["model"]
    assert not any("parametrizations" in name for name in model.state_dict())
