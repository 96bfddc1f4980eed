"""Selection of layers to convert, reasons for skipping the others, and errors that leave the model unchanged."""

import copy

import pytest
import timm
import torch
from conftest import randomize, relative_error
from test_conversion import OPTIONS, SWIN, Small, X, dynamic_names
from torch import nn
from torch.nn.utils import parametrizations, prune, weight_norm

from fdconv_zoo import FDConv2d, FDLinear, convert_model, plan_conversion, set_path
from fdconv_zoo.conversion.costs import count_multiply_adds


@pytest.fixture
def small():
    return randomize(Small()).eval()


@pytest.fixture(scope="module")
def swin():
    return timm.create_model("swin_tiny_patch4_window7_224", img_size=64, window_size=8, **SWIN).eval()


def planned(model, **kwargs):
    plan = plan_conversion(model, **OPTIONS | kwargs)
    return [layer.names[0] for layer in plan.layers]


def reason_for(model, name, **kwargs):
    (reason,) = (layer.reason for layer in plan_conversion(model, **OPTIONS | kwargs).skipped if layer.name == name)
    return reason


def test_filters():
    model = timm.create_model("resnet18")
    names = planned(model, include="layer4.*.conv?")
    assert names == [f"layer4.{block}.conv{conv}" for block in (0, 1) for conv in (1, 2)]
    assert planned(model, include=["layer4.0.conv1", "layer1.*"], exclude="*.conv2") == [
        "layer1.0.conv1", "layer1.1.conv1", "layer4.0.conv1",
    ]  # fmt: skip
    assert planned(model, types=nn.Conv2d, min_channels=512) == [
        "layer4.0.conv2",
        *(f"layer4.1.conv{i}" for i in (1, 2)),
    ]
    assert "conv1" not in planned(model)
    assert "conv1" in planned(model, min_channels=3)
    assert planned(model, select=lambda name, layer: layer.stride == (2, 2), include="*.conv*") == [
        f"layer{stage}.0.conv1" for stage in (2, 3, 4)
    ]  # fmt: skip


def test_every_layer_is_accounted_for():
    model = timm.create_model("resnet18")
    plan = plan_conversion(model, include="layer1.*", exclude="*.1.*", **OPTIONS)
    layers = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert sorted([layer.names[0] for layer in plan.layers] + [layer.name for layer in plan.skipped]) == sorted(layers)
    reasons = {layer.name: layer.reason for layer in plan.skipped}
    assert reasons["layer1.1.conv1"] == "in exclude=('*.1.*',)"
    assert reasons["fc"] == "not in include=('layer1.*',)"


def test_linear_layers_without_an_example(small):
    assert planned(small) == ["conv"]
    assert reason_for(small, "mlp").startswith("its input may be (B, C): pass an example")
    assert planned(small, include="mlp") == ["mlp"]
    assert planned(small, select=lambda name, _: name != "fc") == ["conv", "mlp"]
    assert planned(small, types=nn.Linear, include="*") == ["mlp", "fc"]


def test_linear_layers_on_pooled_features_stay_plain(small):
    assert planned(small, example=X) == ["conv", "mlp"]
    assert reason_for(small, "fc", example=X) == "its input has 2 axes: FDConv needs (B, N, C) or (B, H, W, C)"
    with pytest.raises(ValueError, match="'fc' cannot become an FDConv layer: its input has 2 axes"):
        plan_conversion(small, include=["conv", "fc"], example=X, **OPTIONS)


def test_the_classifier_is_skipped_unless_named():
    model = timm.create_model("test_convnext", num_classes=20)
    model.head.fc = nn.Conv2d(model.num_features, 20, 1)
    assert model.get_classifier() is model.head.fc
    assert reason_for(model, "head.fc") == "part of the classifier: name it in include to convert it"
    assert "head.fc" not in planned(model, include="*")
    assert planned(model, include="head.*") == ["head.fc"]


def test_layers_on_windows_are_skipped_unless_named(swin):
    x = torch.randn(1, 3, 64, 64)
    assert reason_for(swin, "layers.0.blocks.0.attn.qkv", example=x).startswith(
        "its batch size is not the number of images (windows?)"
    )
    names = planned(swin, example=x)
    assert "layers.0.blocks.0.mlp.fc1" in names
    assert planned(swin, example=x, include="layers.0.*.qkv") == [f"layers.0.blocks.{i}.attn.qkv" for i in (0, 1)]
    model = convert_model(copy.deepcopy(swin), example=x, include="layers.0.*.qkv", **OPTIONS)
    assert relative_error(model(x), swin(x)) < 1e-5


def attention():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(32, 32)
            self.attn = nn.MultiheadAttention(32, 2, batch_first=True)

        def forward(self, x):
            x = self.proj(x)
            return self.attn(x, x, x)[0]

    return Attention(), torch.randn(2, 5, 32)


def transformer():
    model = nn.Sequential(nn.Linear(32, 32), nn.TransformerEncoderLayer(32, 2, 64, batch_first=True))
    return model, torch.randn(2, 5, 32)


@pytest.mark.parametrize(
    ("build", "names"),
    [(attention, ["attn.out_proj"]), (transformer, ["1.linear1", "1.linear2", "1.self_attn.out_proj"])],
)
def test_weights_that_torch_reads_directly(build, names):
    model, x = build()
    expected = randomize(model).eval()(x)
    for name in names:
        assert "reads its weight without calling it" in reason_for(model, name, include="*")
        assert "reads its weight without calling it" in reason_for(model, name, example=x)
    convert_model(model, include="*", **OPTIONS)
    with torch.no_grad():  # the fast path
        assert relative_error(model(x), expected) < 1e-5


def test_layers_that_are_not_called():
    model = timm.create_model("swinv2_tiny_window8_256", img_size=64, **SWIN)
    x = torch.randn(1, 3, 64, 64)
    name = "layers.0.blocks.0.attn.qkv"
    assert reason_for(model, name, example=x).startswith("not called by the example")
    with pytest.raises(ValueError, match=f"'{name}' cannot become an FDConv layer: not called by the example"):
        convert_model(model, include=name, example=x, **OPTIONS)
    assert name not in dynamic_names(convert_model(model, example=x, **OPTIONS))


def with_layer(layer):
    """Make a model of a layer that can be converted, and this one."""
    return nn.Sequential(nn.Conv2d(20, 20, 1), layer)


def hooked(register):
    layer = nn.Conv2d(20, 20, 3)
    getattr(layer, register)(lambda *_: None)
    return layer


def masked():
    layer = nn.Conv2d(20, 20, 3)
    layer.forward = lambda x: x
    return layer


class Doubled(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return 2 * super()._conv_forward(x, weight, bias)


class Relabelled(nn.Conv2d):
    """A subclass with the same function."""


class Scaled(nn.Linear):
    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("factor", torch.ones(1))


class WithoutWeight(nn.Conv2d):
    def __init__(self):
        nn.Module.__init__(self)


class Unreadable(nn.Linear):
    """Its weight is a property that fails."""

    def __init__(self, *args):
        super().__init__(*args)
        del self._parameters["weight"]

    @property
    def weight(self):
        raise AttributeError("weight was never packed")


def without_weight(remove):
    layer = nn.Conv2d(20, 20, 3)
    remove(layer)
    return layer


def with_weight_of(dtype):
    layer = nn.Linear(20, 20)
    layer.weight = nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
    return layer


def prepared_for_quantisation():
    qconfig = torch.ao.quantization.get_default_qat_qconfig()
    return torch.ao.nn.qat.Linear(20, 20, qconfig=qconfig)


UNFIT = {
    "deleted weight": (lambda: without_weight(lambda layer: delattr(layer, "weight")), "no weight"),
    "weight is None": (lambda: without_weight(lambda layer: setattr(layer, "weight", None)), "no weight"),
    "subclass without weight": (WithoutWeight, "no weight"),
    "unreadable weight": (lambda: Unreadable(20, 20), "no weight"),
    "weight in a buffer": (
        lambda: without_weight(lambda layer: layer.register_buffer("weight", layer._parameters.pop("weight"))),
        "computed from other tensors",
    ),
    "int8": (lambda: with_weight_of(torch.int8), "a Parameter of torch.int8, is not a float parameter"),
    "float8": (lambda: with_weight_of(torch.float8_e4m3fn), "float8_e4m3fn, is not a float parameter"),
    "prepared for quantisation": (prepared_for_quantisation, "computed from other tensors"),
    "standardized": (lambda: timm.layers.StdConv2d(20, 20, 3), r"StdConv2d, whose forward differs from nn.Conv2d's"),
    "same padding": (lambda: timm.layers.Conv2dSame(20, 20, 3), "Conv2dSame, whose forward differs"),
    "inner method": (lambda: Doubled(20, 20, 3), "Doubled, whose forward differs"),
    "patched": (masked, "Conv2d, whose forward differs"),
    "more tensors": (lambda: Scaled(20, 20), "computed from other tensors"),
    "lazy": (lambda: nn.LazyConv2d(20, 3), "lazy"),
    "parametrized": (lambda: parametrizations.weight_norm(nn.Conv2d(20, 20, 3)), "computed from other tensors"),
    "weight norm": (lambda: weight_norm(nn.Conv2d(20, 20, 3)), "computed from other tensors"),
    "pruned": (lambda: prune.identity(nn.Linear(20, 20), "weight"), "computed from other tensors"),
    "few channels": (lambda: nn.Conv2d(20, 16, 3), "fewer than min_channels=17"),
    "few coefficients": (lambda: nn.Conv2d(20, 20, 1, groups=20), "fewer Fourier coefficients than num_kernels=100"),
    "complex": (lambda: nn.Conv2d(20, 20, 3, dtype=torch.complex64), "of torch.complex64, is not a float parameter"),
    "forward hook": (lambda: hooked("register_forward_hook"), "has hooks"),
    "forward pre-hook": (lambda: hooked("register_forward_pre_hook"), "has hooks"),
    "backward hook": (lambda: hooked("register_full_backward_hook"), "has hooks"),
    "backward pre-hook": (lambda: hooked("register_full_backward_pre_hook"), "has hooks"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:Complex modules:UserWarning")
@pytest.mark.parametrize("name", UNFIT)
def test_layers_that_cannot_be_converted(name):
    build, reason = UNFIT[name]
    layer = build()
    model = with_layer(layer)
    assert reason in reason_for(model, "1", num_kernels=100, include="*")
    with pytest.raises(ValueError, match="'1' cannot become an FDConv layer: .*" + reason.split("=")[0]):
        convert_model(model, include="1", num_kernels=100)
    convert_model(model, include="*", num_kernels=100)
    assert isinstance(model[0], FDConv2d)
    assert model[1] is layer


def test_a_subclass_with_the_same_function_is_converted():
    assert planned(with_layer(Relabelled(20, 20, 3))) == ["0", "1"]


def test_weights_shared_with_plain_layers():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(40, 20)
            self.mlp = nn.Linear(20, 20)
            self.head = nn.Linear(20, 40)
            self.twin = nn.Linear(20, 40)
            self.head.weight = self.twin.weight = self.embedding.weight

        def forward(self, tokens):
            x = self.mlp(self.embedding(tokens))
            return self.head(x), self.twin(x)

    model, tokens = Tied(), torch.randint(40, (2, 5))
    assert reason_for(model, "head", example=tokens) == "shares its weight with 'embedding', which stays plain"
    expected = model(tokens)
    convert_model(model, example=tokens, **OPTIONS)
    assert dynamic_names(model) == ["mlp"]
    assert model.head.weight is model.embedding.weight
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(model(tokens), expected, strict=True))


def test_skipping_a_layer_skips_those_tied_to_it():
    model = nn.Sequential(*(nn.Conv2d(20, 20, 3) for _ in range(4)))
    model[1].weight = model[2].weight = model[0].weight
    assert planned(model, exclude="0") == ["3"]
    assert reason_for(model, "2", exclude="0") == "shares its weight with '0', which stays plain"
    with pytest.raises(ValueError, match="'1' cannot become an FDConv layer: shares its weight with '0'"):
        plan_conversion(model, include=["1", "2"], **OPTIONS)


def test_converted_layers_are_skipped(small):
    convert_model(small, include="conv", **OPTIONS)
    conv = small.conv
    convert_model(small, example=X, **OPTIONS)
    assert small.conv is conv
    assert dynamic_names(small) == ["conv", "mlp"]
    with pytest.raises(ValueError, match="Nothing in this Small can be converted"):
        convert_model(small, example=X, **OPTIONS)
    with pytest.raises(ValueError, match=r"It has no plain nn\.Conv2d or nn\.Linear layers"):
        convert_model(conv, **OPTIONS)


def test_selecting_nothing_explains_why(small):
    with pytest.raises(
        ValueError, match=r"types=\(nn\.Conv2d, nn\.Linear\), min_channels=30, exclude=\('fc',\)"
    ) as info:
        convert_model(small, min_channels=30, exclude="fc", **OPTIONS)
    assert "fewer than min_channels=30 input or output channels: stem, conv" in str(info.value)
    assert "in exclude=('fc',): fc" in str(info.value)


def test_wrong_arguments(small):
    with pytest.raises(TypeError, match=r"no option kernels, temperatur; the options are .*num_kernels"):
        convert_model(small, kernels=3, temperatur=1)
    for kind in (nn.Conv1d, nn.ConvTranspose2d, FDConv2d):
        with pytest.raises(TypeError, match=rf"types has .*{kind.__name__}.*, but only nn\.Conv2d and nn\.Linear"):
            convert_model(small, types=(nn.Conv2d, kind))
    with pytest.raises(ValueError, match="include has 'convv', which is not a module of this model"):
        convert_model(small, include=["conv", "convv"])
    with pytest.raises(ValueError, match=r"include has 'norm', which is a BatchNorm2d"):
        convert_model(small, include="norm")
    with pytest.raises(ValueError, match="conv cannot become an FDConv layer: temperature"):
        convert_model(small, temperature=-1)
    assert dynamic_names(small) == []


@pytest.mark.parametrize("name", ["deleted weight", "weight is None", "subclass without weight", "unreadable weight"])
def test_a_layer_that_fails_on_the_example_is_named(name):
    model = with_layer(UNFIT[name][0]())
    for convert in (convert_model, plan_conversion):
        with pytest.raises(RuntimeError, match=r"does not run on the example: '1' raises (Attribute|Type)Error"):
            convert(model, example=torch.zeros(1, 20, 5, 5))


@pytest.mark.filterwarnings("ignore:.*quantiz.*")
def test_quantised_layers_are_no_obstacle():
    model = with_layer(nn.Linear(20, 20))
    model[1] = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(20, 20)))[0]
    convert_model(model, **OPTIONS)
    assert dynamic_names(model) == ["0"]


def test_a_select_that_fails_names_the_layer():
    model = with_layer(UNFIT["deleted weight"][0]())
    with pytest.raises(RuntimeError, match=r"select fails for '1': AttributeError \(.*no attribute 'weight'"):
        convert_model(model, select=lambda _, layer: layer.weight.ndim == 4)


def test_parents_may_lack_the_children_that_torch_reads():
    model = nn.Sequential(nn.Linear(32, 32), nn.TransformerEncoderLayer(32, 2, 64))
    del model[1].linear2
    assert planned(model, include="*") == ["0"]


class Watching(Small):
    """A model whose function depends on the type of its layer, in one of several ways."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.hidden = [self.mlp]

    def forward(self, x):
        is_plain = isinstance(self.conv, nn.Conv2d)
        if self.way == "reads":
            x = x * self.conv.weight.mean()
        if self.way == "hides":
            return self.hidden[0](self.conv(self.stem(x)).flatten(2).transpose(1, 2))
        y = super().forward(x)
        if self.way == "shape" and not is_plain:
            return y[:1]
        if self.way == "nan" and not is_plain:
            return y * torch.nan
        if self.way == "interrupts" and not is_plain:
            raise KeyboardInterrupt
        return y if is_plain or self.way != "deviates" else y * 1.01


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("reads", r"does not run on the example: 'conv' raises AttributeError .*weight"),
        ("hides", "still uses the plain layer 'mlp'"),
        ("deviates", "deviates on the example by 1.0e-02 of its largest output; rounding explains"),
        ("shape", "deviates on the example by inf"),
        ("nan", "deviates on the example by inf"),
        ("interrupts", None),
    ],
)
def test_a_failed_check_leaves_the_model_unchanged(way, message):
    model = randomize(Watching(way)).train()
    modules, state = dict(model.named_modules()), copy.deepcopy(model.state_dict())
    parameters, random_state = dict(model.named_parameters()), torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt if way == "interrupts" else RuntimeError, match=message):
        convert_model(model, example=X, **OPTIONS)
    assert dict(model.named_modules()) == modules
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert random_state.shape == torch.get_rng_state().shape
    assert not torch.nn.modules.module._global_forward_hooks


def test_rounding_does_not_explain_other_shapes():
    """The number of outputs changes with the slightest disturbance, as in detectors."""

    class Brittle(Small):
        seen = None

        def forward(self, x):
            features = self.conv(self.stem(x))
            self.seen = features if self.seen is None else self.seen
            return features if torch.equal(features, self.seen) else features[:1]

    model = randomize(Brittle())
    with pytest.raises(RuntimeError, match=r"by inf of its largest output.*If the model sorts or samples"):
        convert_model(model, example=X, **OPTIONS)
    assert dynamic_names(model) == []


def test_lazy_models_are_not_initialised_silently():
    model = nn.Sequential(nn.Conv2d(3, 20, 3), nn.LazyConv2d(20, 3))
    with pytest.raises(ValueError, match="'1' has lazy parameters that are not initialised: run the model once before"):
        convert_model(model, example=X)
    model(X)
    convert_model(model, example=X, **OPTIONS)
    assert dynamic_names(model) == ["1"]


def test_an_output_that_cannot_be_compared():
    class Labels(Small):
        def forward(self, x):
            return super().forward(x).argmax(1)

    with pytest.raises(ValueError, match="has no floating-point tensors to compare"):
        convert_model(Labels(), example=X, **OPTIONS)


def test_dry_run_prints_the_plan(small, capsys):
    assert convert_model(small, example=X, dry_run=True, **OPTIONS) is small
    text = capsys.readouterr().out
    assert text.strip() == str(plan_conversion(small, example=X, **OPTIONS))
    assert dynamic_names(small) == []


def test_the_plan_counts(small):
    plan = plan_conversion(small, example=X, num_kernels=4, ksm_local=False)
    conv, mlp = plan.layers
    assert (conv.kind, mlp.kind) == ("FDConv2d", "FDLinear")
    assert conv.kernel_shape == (24, 10, 3, 3)
    assert conv.parameters[0] == 24 * 10 * 9
    # 4x4 positions; the example has two images.
    assert conv.multiply_adds[0] == 16 * 24 * 10 * 9
    assert mlp.multiply_adds[0] == 16 * 24 * 20
    # KSM: the hidden layer, and the heads for channel, filter and kernel. (No convolution: no FBM, no taps.)
    assert mlp.multiply_adds[1] == mlp.multiply_adds[0] + 24 * 16 + 16 * (24 + 20 + 4)
    layer = FDConv2d.from_conv(small.conv, num_kernels=4, ksm_local=False)
    set_path(layer, "plain")
    assert conv.multiply_adds[1] == count_multiply_adds(layer, torch.zeros(1, 20, 9, 9))[0]
    lines = str(plan).splitlines()
    assert lines[0].split() == ["layer", "becomes", "kernel", "parameters", "after", "multiply-adds", "after"]
    assert len({line.rstrip()[-1].isdigit() and len(line) for line in lines[2:5]}) == 1  # aligned to the right
    totals = [sum(column) for column in zip(conv.parameters, mlp.parameters, strict=True)]
    assert f"{totals[0]:,}" in lines[4]
    assert f"{totals[1]:,}" in lines[4]
    assert f"{plan.parameters[0]:,}" in lines[5]
    assert "2 convolutions and linear layers are skipped:" in lines
    assert plan_conversion(small, num_kernels=4).layers[0].multiply_adds is None


def test_hooks_on_the_model_and_its_blocks_are_kept(small):
    seen = []
    small.register_forward_hook(lambda *_: seen.append("model"))
    small.norm.register_forward_hook(lambda *_: seen.append("norm"))
    convert_model(small, example=X, **OPTIONS)
    seen.clear()
    small(X)
    assert seen == ["norm", "model"]
    assert isinstance(small.mlp, FDLinear)


def test_a_plan_names_layers_that_grow_many_times():
    depthwise = nn.Conv2d(32, 32, 3, groups=32)
    plan = plan_conversion(nn.Sequential(depthwise, nn.Conv2d(32, 64, 3)))
    before, after = plan.layers[0].parameters
    assert before == 32 * 9 + 32
    assert after == sum(p.numel() for p in FDConv2d(32, 32, 3, groups=32).parameters())
    assert f"depthwise layers become: 1, which grow from {before:,} to {after:,} parameters" in str(plan)
    assert "depthwise" not in str(plan_conversion(nn.Sequential(depthwise, nn.Conv2d(32, 64, 3)), exclude="0"))
