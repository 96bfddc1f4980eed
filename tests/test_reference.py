"""Against recorded outputs of the paper authors' layer (float32, CPU); see recordings/README.md."""

import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from conftest import relative_error
from safetensors import safe_open

from fdconv_zoo import FDConv2d, FDLinear, from_reference, ops, set_path

RECORDINGS = sorted((Path(__file__).parent / "recordings").glob("*.safetensors"))
on_every_path = pytest.mark.parametrize("path", get_args(ops.Path))


def read(recording):
    with safe_open(recording, "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict

    def part(prefix):
        return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

    return config, tensors, part("param."), part("grad.")


def build(config, band_mask):
    temperature = config.get("kernel_temp", 1.0)
    kernel_size = config["kernel_size"]
    return FDConv2d(
        config["in_channels"],
        config["out_channels"],
        kernel_size,
        config["stride"],
        kernel_size // 2,
        bias=config["bias"],
        num_kernels=config["kernel_num"],
        temperature=temperature,
        kernel_temperature=temperature,
        band_mask=band_mask,
    )


@on_every_path
@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.stem)
def test_layer_matches_recording(recording, path):
    config, tensors, params, grads = read(recording)
    # Their masks are exact at 64x64 only.
    layer = build(config, "exact" if config["height"] == 64 or config["kernel_size"] == 1 else "reference")
    layer.load_state_dict(from_reference(params))
    layer.train(config["train"])
    set_path(layer, path)
    x = tensors["input"].requires_grad_()
    y = layer(x)
    (y * tensors["grad_output"]).sum().backward()

    step = config["sampled_every"]
    errors = {
        "output": relative_error(y[..., ::step, ::step], tensors["output"]),
        "grad_input": relative_error(x.grad[..., ::step, ::step], tensors["grad_input"]),
    }
    expected = {key: grad for key, grad in from_reference(grads).items() if not key.endswith("group_index")}
    actual = {key: parameter.grad for key, parameter in layer.named_parameters()}
    assert expected.keys() == actual.keys()
    errors |= {key: relative_error(actual[key], expected[key]) for key in expected}
    print(f"{recording.stem}, {path}: worst {max(errors.values()):.1e}")
    assert max(errors.values()) < 1e-5, errors


@on_every_path
def test_exact_and_reference_masks_differ_off_64x64(path):
    config, tensors, params, _ = read(next(file for file in RECORDINGS if "small_map" in file.stem))
    layer = build(config, "exact")
    set_path(layer, path)
    layer.load_state_dict(from_reference(params))
    assert relative_error(layer.eval()(tensors["input"]), tensors["output"]) > 0.01


@on_every_path
def test_linear_reads_a_pointwise_recording(path):
    config, tensors, params, _ = read(next(file for file in RECORDINGS if "bias" in file.stem))
    layer = FDLinear(config["in_channels"], config["out_channels"], num_kernels=config["kernel_num"]).eval()
    set_path(layer, path)
    layer.load_state_dict(from_reference(params))
    y = layer(tensors["input"].permute(0, 2, 3, 1))
    assert relative_error(y.permute(0, 3, 1, 2), tensors["output"]) < 1e-5


def test_layers_read_reference_names_inside_any_model_and_keep_their_groups():
    config, tensors, params, _ = read(next(path for path in RECORDINGS if "64_128" in path.stem))
    model = torch.nn.Sequential(torch.nn.Identity(), build(config, "exact")).eval()
    model.load_state_dict({f"1.{key}": value for key, value in params.items()})
    expected = model(tensors["input"])
    assert relative_error(expected, tensors["output"]) < 1e-5

    # Their groups depend on how a sort left its ties, so they must travel with the converted weights.
    state = model.state_dict()
    assert "1.fdw.group_index" in state
    again = torch.nn.Sequential(torch.nn.Identity(), build(config, "exact")).eval()
    again.load_state_dict(state)
    assert torch.equal(again(tensors["input"]), expected)
    # ... and go again with a checkpoint that has none.
    again[1].load_state_dict(build(config, "exact").state_dict())
    assert "1.fdw.group_index" not in again.state_dict()
    assert not torch.equal(model[1].fdw.group_index, again[1].fdw.group_index)


def test_from_reference_keeps_prefixes_and_other_entries():
    _, _, params, _ = read(RECORDINGS[0])
    other = {"backbone.bn1.weight": torch.ones(3), "head.conv.weight": torch.ones(1, 2, 3, 3)}
    mapped = from_reference({f"backbone.layer1.0.conv2.{key}": value for key, value in params.items()} | other)
    assert mapped["head.conv.weight"].shape == (1, 2, 3, 3)
    assert "backbone.layer1.0.conv2.fdw.spectrum" in mapped
    assert mapped["backbone.layer1.0.conv2.fbm.attention.weight"].shape[0] == 3
    assert not any("KSM" in key or "FBM" in key or "dft" in key for key in mapped)


@pytest.mark.parametrize(
    ("key", "shape"), [("a.KSM_Local.complex_weight", (1, 9, 2)), ("dft_weight", (4, 16, 9, 2)), ("FBM.other", (1,))]
)
def test_from_reference_names_what_it_cannot_convert(key, shape):
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        from_reference({key: torch.zeros(shape)})
