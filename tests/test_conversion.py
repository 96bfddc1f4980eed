"""Conversion of models from timm, torchvision and transformers, with random weights and small sizes."""

import copy
import io
import pickle

import pytest
import timm
import torch
import torchvision
from conftest import randomize, relative_error
from torch import nn

from fdconv_zoo import FDConv2d, FDLinear, convert_model, plan_conversion, to_plain
from fdconv_zoo.conversion.run import find_floating, run
from fdconv_zoo.layers.replace import replace_layers

OPTIONS = dict(num_kernels=8)


def timm_model(name, **kwargs):
    return lambda: timm.create_model(name, **kwargs)


def vit():
    return torchvision.models.VisionTransformer(
        image_size=32, patch_size=16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64
    )


def hugging_face(kind, **config):
    def build():
        transformers = pytest.importorskip("transformers")
        head = "ForSemanticSegmentation" if kind == "Segformer" else "ForImageClassification"
        return getattr(transformers, kind + head)(getattr(transformers, f"{kind}Config")(**config))

    return build


SWIN = dict(depths=(2, 1), embed_dim=32, num_heads=(2, 4))
STAGES = dict(depths=[1, 1, 1, 1], hidden_sizes=[32, 32, 48, 64])
# Function that builds a model, size of its images, and number of layers converted to FDConv2d and FDLinear.
MODELS = {
    "timm resnet": (timm_model("test_resnet"), 32, (12, 0)),
    "timm mobilenet": (timm_model("mobilenetv3_small_100"), 32, (47, 0)),
    "timm same padding": (timm_model("tf_efficientnet_lite0"), 32, (42, 0)),
    "timm convnext": (timm_model("test_convnext"), 32, (12, 18)),
    "timm vit": (timm_model("vit_tiny_patch16_224", img_size=32), 32, (0, 48)),
    "timm eva": (timm_model("eva02_tiny_patch14_224", img_size=28, depth=2), 28, (0, 6)),
    "timm beit": (timm_model("beit_base_patch16_224", img_size=32, depth=1, embed_dim=64, num_heads=2), 32, (0, 3)),
    "timm swin": (timm_model("swinv2_tiny_window8_256", img_size=64, **SWIN), 64, (0, 8)),
    "torchvision resnet": (torchvision.models.resnet18, 32, (19, 0)),
    "torchvision mobilenet": (torchvision.models.mobilenet_v2, 32, (49, 0)),
    "torchvision vit": (vit, 32, (0, 4)),
    "torchvision segmentation": (
        lambda: torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None), 64, (62, 0),
    ),
    "transformers vit": (
        hugging_face(
            "ViT", hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32,
        ), 32, (0, 12),
    ),
    "transformers segformer": (
        hugging_face("Segformer", decoder_hidden_size=32, num_attention_heads=[1, 2, 3, 8], **STAGES), 64, (11, 28),
    ),
    "transformers convnext": (hugging_face("ConvNext", **STAGES), 32, (7, 8)),
}  # fmt: skip


def count(model, kind):
    return sum(isinstance(module, kind) for module in model.modules())


def largest_error(actual, expected):
    actual, expected = find_floating(actual), find_floating(expected)
    assert len(actual) == len(expected) > 0
    return max(relative_error(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_models_of_all_libraries(name):
    build, size, numbers = MODELS[name]
    model = randomize(build(), std=0.05).eval()
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = model(x)
    plan = plan_conversion(model, example=x, **OPTIONS)
    state = copy.deepcopy(model.state_dict())

    assert convert_model(model, example=x, **OPTIONS) is model

    with torch.no_grad():
        assert largest_error(model(x), expected) < 1e-4
    assert (count(model, FDConv2d), count(model, FDLinear)) == numbers
    assert len(plan.layers) == sum(numbers)
    assert plan.parameters[1] == sum(parameter.numel() for parameter in model.parameters())
    for planned in plan.layers:
        layer = model.get_submodule(planned.names[0])
        assert type(layer).__name__ == planned.kind
        assert planned.parameters[1] == sum(parameter.numel() for parameter in layer.parameters())

    back = to_plain(copy.deepcopy(model)).state_dict()
    assert back.keys() == state.keys()
    assert all(relative_error(back[key], value) < 1e-5 for key, value in state.items())

    check_gradients(model, x, state)


def check_gradients(model, x, old_names):
    """Check that all new parameters get gradients. KSM's heads start at zero and block gradients in the first step."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    for _ in range(2):
        optimizer.zero_grad()
        sum(tensor.square().mean() for tensor in find_floating(model(x))).backward()
        optimizer.step()
    new = [(name, parameter) for name, parameter in model.named_parameters() if name not in old_names]
    assert new
    assert not [name for name, parameter in new if parameter.grad is None]
    spectra = [parameter.grad for name, parameter in new if name.endswith("spectrum")]
    assert all(grad.any() for grad in spectra)


class Small(nn.Module):
    """Convolutions, linear layers on tokens and on pooled features, and dropout."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 20, 3, padding=1)
        self.norm = nn.BatchNorm2d(20)
        self.conv = nn.Conv2d(20, 24, 3, stride=2, groups=2, padding="valid", bias=False)
        self.mlp = nn.Linear(24, 20)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(20, 32)

    def forward(self, x, scale=1.0):
        x = self.conv(self.norm(self.stem(x)).relu()) * scale
        return self.fc(self.dropout(self.mlp(x.flatten(2).transpose(1, 2)).relu().mean(1)))


@pytest.fixture
def small():
    return randomize(Small()).eval()


X = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(3))


def dynamic_names(model):
    return [name for name, module in model.named_modules() if isinstance(module, FDConv2d | FDLinear)]


def test_without_an_example_convolutions_are_converted(small):
    expected = small(X)
    convert_model(small, **OPTIONS)
    assert dynamic_names(small) == ["conv"]
    assert relative_error(small(X), expected) < 1e-5


@pytest.mark.parametrize("example", [X, (X, 3.0), {"x": X, "scale": 3.0}], ids=["tensor", "tuple", "dict"])
def test_kinds_of_examples(small, example):
    plain = copy.deepcopy(small)
    convert_model(small, example=example, **OPTIONS)
    assert dynamic_names(small) == ["conv", "mlp"]
    assert relative_error(small(X), plain(X)) < 1e-5


def test_a_single_layer_is_returned():
    conv = randomize(nn.Conv2d(20, 24, 3)).train()
    x = torch.randn(2, 20, 8, 8)
    converted = convert_model(conv, example=x, **OPTIONS)
    assert isinstance(converted, FDConv2d)
    assert converted.training
    assert relative_error(converted.eval()(x), conv(x)) < 1e-5
    back = to_plain(converted)
    assert type(back) is nn.Conv2d
    assert relative_error(back.weight, conv.weight) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_is_kept(small, dtype):
    small.to(dtype)
    plain, x = copy.deepcopy(small).double(), X.to(dtype)
    convert_model(small, example=x, **OPTIONS)
    assert {parameter.dtype for parameter in small.parameters()} == {dtype}
    assert relative_error(small(x), plain(x.double())) < {torch.float64: 1e-12}.get(dtype, 0.05)


def test_modes_and_freezing_are_kept(small):
    small.train()
    small.conv.eval()
    small.mlp.weight.requires_grad_(False)
    small.mlp.bias.requires_grad_(False)
    bias = small.mlp.bias
    convert_model(small, example=X, **OPTIONS)
    assert [module.training for module in (small, small.norm, small.conv, small.conv.ksm, small.mlp)] == [
        True, True, False, False, True,
    ]  # fmt: skip
    assert not small.mlp.fdw.spectrum.requires_grad
    assert small.mlp.bias is bias
    assert not bias.requires_grad
    assert small.conv.fdw.spectrum.requires_grad
    assert all(parameter.requires_grad for parameter in small.mlp.ksm.parameters())


def test_running_the_example_has_no_side_effects(small):
    small.train()
    small.norm.eval()
    state = {name: value.clone() for name, value in small.state_dict().items()}
    random_state = torch.get_rng_state()
    plan_conversion(small, example=X, **OPTIONS)
    convert_model(small, example=X, dry_run=True, **OPTIONS)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert small.training
    assert not small.norm.training
    assert dynamic_names(small) == []
    assert all(torch.equal(value, state[name]) for name, value in small.state_dict().items())
    assert all(parameter.grad is None for parameter in small.parameters())
    convert_model(small, example=X, **OPTIONS)
    kept = ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked", "stem.weight")
    assert all(torch.equal(small.state_dict()[name], state[name]) for name in kept)


def test_a_random_model_is_compared_with_the_same_random_numbers():
    class Masked(Small):
        def forward(self, x):
            return super().forward(x * (torch.rand_like(x) > 0.5))

    model = randomize(Masked())
    first = run(model, X)
    torch.rand(1)
    assert torch.equal(run(model, X), first)
    convert_model(model, example=X, **OPTIONS)
    assert relative_error(run(model, X), first) < 1e-5


def test_amplified_rounding_is_no_error():
    """In this network with these weights, rounding grows to a third of the logits."""
    model = randomize(timm.create_model("tf_efficientnet_lite0"), std=0.3).eval()
    x = torch.randn(2, 3, 64, 64)
    expected = model(x)
    convert_model(model, example=x, **OPTIONS)
    assert relative_error(model(x), expected) > 1e-3


def test_nested_outputs_are_compared():
    class Nested(Small):
        def forward(self, x):
            features = self.conv(self.stem(x))
            is_dynamic = isinstance(self.conv, FDConv2d)
            return {"logits": x.sum(), "more": [(features * (1.01 if is_dynamic else 1.0), "name"), None]}

    with pytest.raises(RuntimeError, match=r"deviates on the example by 1.0e-02"):
        convert_model(randomize(Nested()), example=X, **OPTIONS)


def test_shared_layers_stay_one_layer():
    model = nn.Sequential(nn.Conv2d(3, 20, 1), nn.Conv2d(20, 20, 3, padding=1), nn.ReLU())
    model.append(model[1])
    expected = randomize(model)(X)
    plan = plan_conversion(model, example=X, **OPTIONS)
    convert_model(model, example=X, **OPTIONS)
    assert isinstance(model[1], FDConv2d)
    assert model[1] is model[3]
    assert relative_error(model.eval()(X), expected) < 1e-5
    assert plan.layers[0].names == ("1", "3")
    assert plan.layers[0].multiply_adds[0] == 2 * 81 * 20 * 20 * 9
    assert "1 = 3" in str(plan)
    assert to_plain(model)[1] is model[3]


def test_shared_weights_stay_one_parameter():
    model = nn.Sequential(*(nn.Conv2d(20, 20, 3, stride=s, padding=1) for s in (1, 2)), nn.Conv2d(20, 20, 3))
    model[1].weight, model[2].bias = model[0].weight, model[0].bias
    x = torch.randn(2, 20, 9, 9)
    expected = randomize(model)(x)
    plan = plan_conversion(model, example=x, **OPTIONS)
    convert_model(model, example=x, **OPTIONS)
    assert model[0].fdw.spectrum is model[1].fdw.spectrum
    assert model[2].fdw.spectrum is not model[0].fdw.spectrum
    assert model[2].bias is model[0].bias
    assert relative_error(model.eval()(x), expected) < 1e-5
    assert plan.parameters[1] == sum(parameter.numel() for parameter in model.parameters())
    before, after = zip(*(layer.parameters for layer in plan.layers), strict=True)
    assert (sum(before), sum(after)) == plan.parameters
    to_plain(model)
    assert model[0].weight is model[1].weight
    assert model[2].bias is model[0].bias
    assert model[2].weight is not model[0].weight
    assert relative_error(model(x), expected) < 1e-5


def test_converted_models_can_be_saved_and_copied(small):
    convert_model(small, example=X, **OPTIONS)
    randomize(small, std=0.1)
    expected = small(X)
    file = io.BytesIO()
    torch.save(small.state_dict(), file)
    file.seek(0)
    again = convert_model(Small().eval(), example=X, **OPTIONS)
    again.load_state_dict(torch.load(file, weights_only=True))
    for copied in (again, copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert torch.equal(copied(X), expected)


def test_plain_checkpoints_load_into_converted_models(small):
    state = small.state_dict()
    again = convert_model(Small().eval(), example=X, **OPTIONS)
    again.load_state_dict(state)
    assert relative_error(again(X), small(X)) < 1e-5


def test_layer_options_pass_through(small):
    convert_model(small, example=X, num_kernels=5, ksm_local=False, fbm=False)
    assert small.conv.fbm is None
    assert small.conv.ksm.local_branch is None
    assert small.mlp.fdw.num_kernels == 5


def test_replace_layers_keeps_the_model_if_a_layer_fails(small):
    layers = dict(small.named_modules())
    with pytest.raises(ValueError, match="stem cannot become an FDConv layer: num_kernels is 2000"):
        replace_layers(small, lambda name, _: name in ("conv", "stem"), num_kernels=2000)
    assert dict(small.named_modules()) == layers
    assert replace_layers(small, lambda name, _: name == "conv", num_kernels=8) == ["conv"]
    small.norm = timm.layers.StdConv2d(20, 20, 3)
    with pytest.raises(TypeError, match=r"norm cannot become an FDConv layer: .*StdConv2d"):
        replace_layers(small, lambda name, _: name == "norm", num_kernels=8)
    # Layers inside FDConv layers are never selected.
    assert replace_layers(small, lambda name, _: name not in ("stem", "norm"), num_kernels=8) == ["mlp", "fc"]
