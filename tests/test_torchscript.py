"""TorchScript and the legacy exporter to ONNX: deprecated in torch, and still what many deploy with."""

import copy
import io

import pytest
import torch
from conftest import randomize, relative_error
from contract import FAMILIES, assert_same, each_family, example, images, small
from torch import nn

from fdconv_zoo import FDConv2d, FDLinear, script_model
from fdconv_zoo.layers import BandModulatedConv2d, FourierDisjointWeight, FrequencyBandModulation

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*"),
]

LAYERS = {
    "3x3": lambda: FDConv2d(8, 6, 3, padding=1, num_kernels=4),
    "1x1": lambda: FDConv2d(8, 6, 1, num_kernels=4),
    "stride": lambda: FDConv2d(8, 6, 3, stride=2, padding=1, dilation=2, num_kernels=4),
    "grouped": lambda: FDConv2d(8, 6, 3, padding=1, groups=2, num_kernels=4),
    "depthwise": lambda: FDConv2d(8, 8, 5, padding="same", groups=8, num_kernels=4),
    "reflect": lambda: FDConv2d(8, 6, 3, padding=1, padding_mode="reflect", num_kernels=4),
    "wide": lambda: FDConv2d(8, 80, 3, padding=1, num_kernels=4),  # more output channels than positions
    "no global branch": lambda: FDConv2d(8, 6, 3, padding=1, num_kernels=4, ksm_global=False),
    "one kernel": lambda: FDConv2d(8, 6, 3, padding=1, num_kernels=1),
    "no branch": lambda: FDConv2d(8, 6, 3, padding=1, num_kernels=4, ksm_global=False, ksm_local=False),
    "authors' masks": lambda: FDConv2d(8, 6, 3, padding=1, num_kernels=4, band_mask="reference"),
    "linear": lambda: FDLinear(8, 6, num_kernels=4),
    "bands": lambda: BandModulatedConv2d(8, 8, 3, padding=1, groups=8),
}
every_layer = pytest.mark.parametrize("kind", LAYERS)


@pytest.fixture(autouse=True)
def _unoptimized():
    """The just-in-time compiler takes seconds for each new shape, and is not what is tested."""
    with torch.jit.optimized_execution(False):
        yield


def build(kind):
    torch.manual_seed(1)
    return randomize(LAYERS[kind]()).eval()


def features(kind, batch, size=(9, 7)):
    return torch.randn(batch, *size, 8) if kind == "linear" else torch.randn(batch, 8, *size)


def assert_same_program(program, model, xs, tolerance=2e-5):
    with torch.no_grad():
        for x in xs:
            assert_same(program(x), model(x), tolerance)
    with torch.inference_mode():
        assert_same(program(xs[-1]), model(xs[-1]), tolerance)


def through_file(program):
    file = io.BytesIO()
    torch.jit.save(program, file)
    file.seek(0)
    return torch.jit.load(file)


@every_layer
@pytest.mark.parametrize("batch", [1, 3])
def test_traced_layers_at_other_batches_and_sizes(kind, batch):
    layer = build(kind)
    traced = torch.jit.trace(layer, features(kind, batch))
    xs = [features(kind, n, size) for n in (1, 3) for size in ((9, 7), (12, 16))]
    assert_same_program(traced, layer, xs)
    assert_same_program(through_file(traced), layer, xs[-1:])


@every_layer
def test_traced_layers_use_the_weights_they_are_given(kind):
    """Even when the layer has run before: nothing of the weights is baked in."""
    layer, x = build(kind), features(kind, 2)
    with torch.no_grad():
        layer(x)
        traced = torch.jit.trace(layer, x)
    weights = {key: value * 1.5 if value.is_floating_point() else value for key, value in layer.state_dict().items()}
    traced.load_state_dict(weights, strict=False)
    expected = build(kind)
    expected.load_state_dict(weights)
    assert_same_program(traced, expected, [x, features(kind, 1)])


@every_layer
def test_traced_layers_train(kind):
    layer, x = build(kind), features(kind, 2)
    traced = torch.jit.trace(copy.deepcopy(layer), x)
    for module in (traced, layer):
        module(x).square().sum().backward()
    gradients = dict(traced.named_parameters())
    assert gradients.keys() == dict(layer.named_parameters()).keys()
    for name, parameter in layer.named_parameters():
        assert relative_error(gradients[name].grad, parameter.grad) < 1e-3, name


@pytest.mark.parametrize("part", ["fdw", "ksm", "fbm"])
def test_traced_parts(part):
    layer = build("3x3")
    module, shape = {
        "fdw": (layer.fdw, (4,)),
        "ksm": (layer.ksm, (8,)),
        "fbm": (layer.fbm, (8, 9, 7)),
    }[part]
    traced = torch.jit.trace(module, torch.randn(2, *shape), strict=False)
    for batch in (1, 3):
        x = torch.randn(batch, *shape)
        found, expected = ([y] if isinstance(y, torch.Tensor) else list(y) for y in (traced(x), module(x)))
        for one, right in zip(found, expected, strict=True):
            assert_same(one, right)
    assert isinstance(layer.fdw, FourierDisjointWeight)
    assert isinstance(layer.fbm, FrequencyBandModulation)


SIZES = {"resnet": [(64, 64), (96, 72)], "convnext": [(64, 64), (96, 128)], "swin": [(64, 64)], "vit": [(64, 64)]}


@pytest.mark.parametrize(("family", "batch"), [("resnet", 1), ("resnet", 3), ("convnext", 1), ("swin", 1)])
def test_traced_models_at_other_batches_and_sizes(family, batch):
    model = copy.deepcopy(example(FAMILIES[family]))
    traced = torch.jit.trace(model, images(batch), check_trace=False)
    xs = [images(n, size=size) for n in (1, 3) for size in SIZES[family]]
    assert_same_program(traced, model, xs)
    assert_same_program(through_file(traced), model, xs[:1])


@each_family
def test_traced_models_have_the_models_gradients(name):
    """timm's test_model_forward_torchscript and _backward, by tracing."""
    model, x = copy.deepcopy(example(name)), images()
    traced = torch.jit.trace(copy.deepcopy(model), x, check_trace=False)
    for each in (traced, model):
        each(x).square().sum().backward()
    right = {key: parameter.grad for key, parameter in model.named_parameters()}
    largest = max(gradient.abs().max() for gradient in right.values())
    for key, parameter in traced.named_parameters():
        error = (parameter.grad - right[key]).abs().max()
        assert error <= 1e-3 * (right[key].abs().max() + 1e-2 * largest), key


@every_layer
def test_scripted_layers_at_other_batches_and_sizes(kind):
    model = nn.Sequential(build(kind), nn.GELU()).eval()
    before = copy.deepcopy(model)
    scripted = script_model(model)
    xs = [features(kind, n, size) for n in (1, 3) for size in ((9, 7), (12, 16))]
    assert_same_program(scripted, model, xs)
    assert_same_program(through_file(scripted), model, xs)
    assert repr(model) == repr(before)


def test_scripted_layers_freeze():
    model = nn.Sequential(build("3x3"), nn.GELU()).eval()
    with torch.jit.optimized_execution(True):
        assert_same_program(torch.jit.freeze(script_model(model)), model, [features("3x3", 2)])


def test_scripted_linear_layers_take_tokens_too():
    model = nn.Sequential(build("linear"), nn.GELU()).eval()
    assert_same_program(script_model(model), model, [torch.randn(2, 5, 8), torch.randn(2, 3, 4, 8)])


def test_scripted_layers_under_two_names():
    layer = build("1x1")
    model = nn.ModuleDict({"first": nn.Sequential(nn.Identity(), layer), "second": layer})
    model = nn.Sequential(layer, nn.Conv2d(6, 8, 1), layer, *model["first"][:1]).eval()
    assert_same_program(script_model(model), model, [features("1x1", 2)])


@pytest.mark.parametrize("family", FAMILIES)
def test_scripted_models(family):
    """timm's test_model_forward_torchscript."""
    model = copy.deepcopy(example(FAMILIES[family]))
    scripted = script_model(model)
    xs = [images(n, size=size) for n in (1, 3) for size in SIZES[family]]
    assert_same_program(scripted, model, xs)
    assert_same_program(through_file(scripted), model, xs[:1])


def test_timms_scriptable_models():
    """``create_model(..., scriptable=True)`` and ``exportable=True``, as timm's tests build them."""
    model = small("resnet10s_fdconv", scriptable=True, exportable=True).eval()
    assert_same_program(script_model(model), model, [images(1, size=(32, 32)), images(2, size=(40, 48))])


@pytest.mark.parametrize("kind", ["3x3", "linear", "bands"])
def test_torchs_own_scripting_names_the_function(kind):
    layer = build(kind)
    for model in (layer, nn.Sequential(layer)):
        before = repr(model)
        with pytest.raises(RuntimeError, match=r"fdconv_zoo\.script_model\(model\)"):
            torch.jit.script(model)
        assert repr(model) == before


@pytest.mark.parametrize("kind", ["3x3", "linear", "bands"])
def test_scripting_in_training_mode_says_what_to_do(kind):
    layer = build(kind).train()
    for model in (layer, nn.Sequential(layer)):
        with pytest.raises(RuntimeError, match=r"eval\(\)"):
            script_model(model)


def run_onnx(model, x, file, **kwargs):
    for name in ("onnx", "onnxruntime"):
        pytest.importorskip(name)
    import onnxruntime

    torch.onnx.export(model, (x,), file, dynamo=False, **kwargs)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


@every_layer
def test_legacy_onnx_of_layers(kind, tmp_path):
    """Of a fixed size; the program works, or the export names the exporter that does."""
    if kind == "authors' masks":
        pytest.skip("these masks are made by an FFT of the features, which the legacy exporter does not know")
    layer, x = build(kind), features(kind, 2)
    program = run_onnx(layer, x, str(tmp_path / "layer.onnx"))
    with torch.no_grad():
        for other in (x, features(kind, 2)):
            assert_same(program(other), layer(other))


def test_legacy_onnx_of_tokens(tmp_path):
    """Of a whole model; that of a convolutional one is an example of the documentation."""
    model, x = copy.deepcopy(example(FAMILIES["swin"])), images(1)
    program = run_onnx(model, x, str(tmp_path / "model.onnx"), opset_version=17)
    with torch.no_grad():
        for other in (x, images(1)):
            assert_same(program(other), model(other), 1e-4)


def test_legacy_onnx_of_the_authors_masks_names_the_other_exporter(tmp_path):
    try:
        program = run_onnx(build("authors' masks"), features("3x3", 2), str(tmp_path / "layer.onnx"))
    except Exception as error:
        assert "dynamo=True" in str(error)  # noqa: PT017
    else:
        x = features("3x3", 2)
        with torch.no_grad():
            assert_same(program(x), build("authors' masks")(x))
