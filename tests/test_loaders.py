"""Whatever way weights come in, the layers have the right groups, or loading fails with a clear message.

The oracle is the model that the weights were saved from. ``group_index`` steers inference, where the CPU may take the
groups that follow from the shape, and training, where it takes the buffer: both are compared.
"""

import copy
import pickle

import pytest
import timm
import torch
import torch.distributed.checkpoint as dcp
from accelerate import init_empty_weights, load_checkpoint_and_dispatch, load_checkpoint_in_model
from conftest import randomize, relative_error
from contract import example, small
from literal import frequency_groups
from packaging.version import Version
from safetensors.torch import load_model, save_file, save_model
from test_resnet import to_their_names
from timm.models import load_checkpoint
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from fdconv_zoo import FDConv2d, FDLinear, from_reference, set_path
from fdconv_zoo.layers import BandModulatedConv2d
from fdconv_zoo.porting import convert_checkpoint
from fdconv_zoo.store.export import export_model

OLD_TIMM = Version(timm.__version__) < Version("1.0.26")  # the first that trained models need

X = torch.linspace(-1, 1, 2 * 3 * 32 * 32).sin().view(2, 3, 32, 32)


def build(**kwargs):
    return timm.create_model("resnet10s_fdconv", num_classes=3, **kwargs)


def groups_of(model):
    buffers = model.named_buffers(remove_duplicate=False)
    return {name: buffer for name, buffer in buffers if name.endswith("group_index")}


@pytest.fixture(scope="module")
def fresh():
    torch.manual_seed(0)
    return randomize(build(), std=0.1).eval()


@pytest.fixture(scope="module")
def converted():
    """A model with the authors' weights and groups, unlike those that follow from the shape."""
    torch.manual_seed(0)
    theirs = from_reference(to_their_names(randomize(build(), std=0.1)))
    model = build(stored_groups=True)
    model.load_state_dict(theirs)
    return model.eval()


@pytest.fixture(params=["fresh", "converted"])
def saved(request):
    """A model, and the arguments that build one for its weights."""
    model = request.getfixturevalue(request.param)
    return model, dict(stored_groups=True) if request.param == "converted" else {}


def assert_same(model, expected):
    with torch.no_grad():
        assert relative_error(model.eval()(X), expected(X)) < 1e-5
    gradients = []
    for each in (model, expected):
        loss = each(X).square().sum()
        gradients.append(torch.autograd.grad(loss, [each.layer1[0].conv1.fdw.spectrum, each.fc.weight]))
    for actual, right in zip(*gradients, strict=True):
        assert relative_error(actual, right) < 1e-4
    actual, right = groups_of(model), groups_of(expected)
    assert actual.keys() == right.keys()
    assert len(right) == 8
    assert all(torch.equal(actual[name], right[name]) for name in right)


def poison(model):
    """Fill fresh memory with what may lie there."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.copy_(torch.full_like(tensor, 251)) if tensor.is_floating_point() else tensor.fill_(251 % 128)
    return model


def on_meta(**kwargs):
    with torch.device("meta"):
        return build(**kwargs)


def by_state_dict(model, kwargs, folder):
    new = build(**kwargs)
    new.load_state_dict(model.state_dict())
    return new


def by_assigning(model, kwargs, folder):
    new = build(**kwargs)
    new.load_state_dict({key: value.clone() for key, value in model.state_dict().items()}, assign=True)
    return new


def by_assigning_to_meta(model, kwargs, folder):
    new = on_meta(**kwargs)
    new.load_state_dict({key: value.clone() for key, value in model.state_dict().items()}, assign=True)
    return new


def by_to_empty_from_meta(model, kwargs, folder):
    new = poison(on_meta(**kwargs).to_empty(device="cpu"))
    new.load_state_dict(model.state_dict())
    return new


def by_to_empty_of_a_real_model(model, kwargs, folder):
    new = poison(build(**kwargs).to_empty(device="cpu"))
    new.load_state_dict(model.state_dict())
    return new


def by_meta_and_back(model, kwargs, folder):
    new = poison(build(**kwargs).to("meta").to_empty(device="cpu"))
    new.load_state_dict(model.state_dict())
    return new


def by_memory_mapped_file(model, kwargs, folder):
    torch.save(model.state_dict(), folder / "model.pt")
    new = on_meta(**kwargs)
    new.load_state_dict(torch.load(folder / "model.pt", mmap=True, weights_only=True), assign=True)
    return new


def by_copy(model, kwargs, folder):
    return copy.deepcopy(model)


def by_pickle(model, kwargs, folder):
    return pickle.loads(pickle.dumps(model))


def by_saved_module(model, kwargs, folder):
    torch.save(model, folder / "module.pt")
    return torch.load(folder / "module.pt", weights_only=False)


def by_safetensors(model, kwargs, folder):
    save_model(model, str(folder / "model.safetensors"))
    new = build(**kwargs)
    load_model(new, str(folder / "model.safetensors"))
    return new


def by_timm(model, kwargs, folder):
    torch.save({"state_dict": model.state_dict()}, folder / "model.pth")
    new = build(**kwargs)
    load_checkpoint(new, str(folder / "model.pth"))
    return new


def by_timm_create_model(model, kwargs, folder):
    torch.save(model.state_dict(), folder / "model.pth")
    return build(checkpoint_path=str(folder / "model.pth"), **kwargs)


def by_timm_folder(model, kwargs, folder):
    if OLD_TIMM:
        pytest.skip("this timm loads no folders")
    export_model(model, folder, class_names=None, preprocessing={}, model_args=kwargs)
    return timm.create_model(f"local-dir:{folder}", pretrained=True)


def by_distributed_state_dict(model, kwargs, folder):
    new = build(**kwargs)
    set_model_state_dict(new, get_model_state_dict(model))
    return new


def by_distributed_checkpoint(model, kwargs, folder):
    dcp.save(model.state_dict(), checkpoint_id=folder / "dcp")
    new = build(**kwargs)
    state_dict = new.state_dict()
    dcp.load(state_dict, checkpoint_id=folder / "dcp")
    new.load_state_dict(state_dict)
    return new


def by_accelerate(model, kwargs, folder, include_buffers=False):
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    with init_empty_weights(include_buffers=include_buffers):
        new = build(**kwargs)
    return load_checkpoint_and_dispatch(new, str(folder / "model.safetensors"), device_map={"": "cpu"})


def by_accelerate_with_buffers(model, kwargs, folder):
    return by_accelerate(model, kwargs, folder, include_buffers=True)


def by_accelerate_in_model(model, kwargs, folder):
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    new = build(**kwargs)
    load_checkpoint_in_model(new, str(folder / "model.safetensors"))
    return new


LOADERS = [
    by_state_dict, by_assigning, by_assigning_to_meta, by_to_empty_from_meta, by_to_empty_of_a_real_model,
    by_meta_and_back, by_memory_mapped_file, by_copy, by_pickle, by_saved_module, by_safetensors, by_timm,
    by_timm_create_model, by_timm_folder, by_distributed_state_dict, by_distributed_checkpoint, by_accelerate,
    by_accelerate_with_buffers, by_accelerate_in_model,
]  # fmt: skip
every_loader = pytest.mark.parametrize("load", LOADERS, ids=lambda load: load.__name__)


@every_loader
def test_loaded_models_are_the_saved_ones(load, saved, tmp_path):
    model, kwargs = saved
    assert_same(load(model, kwargs, tmp_path), model)


# These ask a file for the keys that the model has, so that the layer never learns of another: see ``stored_groups``.
ASK_BY_KEY = {by_distributed_checkpoint, by_accelerate, by_accelerate_with_buffers, by_accelerate_in_model}


@pytest.mark.parametrize("load", [load for load in LOADERS if load not in ASK_BY_KEY], ids=lambda load: load.__name__)
def test_groups_of_their_own_are_never_dropped_without_a_word(load, converted, tmp_path):
    """Into a model built without ``stored_groups``: the groups are right, or loading fails."""
    try:
        model = load(converted, {}, tmp_path)
    except (RuntimeError, ValueError, KeyError):
        return
    assert_same(model, converted)


def test_transformers_keeps_the_groups_of_an_authors_checkpoint(tmp_path):
    transformers = pytest.importorskip("transformers")
    arguments = dict(layers=(1, 1, 1, 1), channels=(32, 32, 64, 64))
    name = "resnet50_fdconv"
    theirs = to_their_names(randomize(timm.create_model(name, num_classes=7, **arguments), std=0.1))
    torch.save({"state_dict": theirs}, tmp_path / "theirs.pth")
    convert_checkpoint(tmp_path / "theirs.pth", name, tmp_path / "folder", model_kwargs=arguments)
    expected = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).eval()
    kinds = transformers.AutoModelForImageClassification, transformers.AutoModel
    with torch.no_grad():
        classifier, features = (kind.from_pretrained(tmp_path / "folder").eval() for kind in kinds)
        assert relative_error(classifier(X).logits, expected(X)) < 1e-5
        assert relative_error(features(X).last_hidden_state, expected.forward_features(X)) < 1e-5
        classifier.save_pretrained(tmp_path / "again")
        again = kinds[0].from_pretrained(tmp_path / "again").eval()
        assert relative_error(again(X).logits, expected(X)) < 1e-5


def test_transformers_loads_what_it_saved(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.TimmWrapperConfig(architecture="resnet10s_fdconv", num_labels=3)
    model = randomize(transformers.TimmWrapperForImageClassification(config), std=0.1).eval()
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert_same(again.timm_model, model.timm_model)


DERIVED = torch.from_numpy(frequency_groups(18, 24, 4))


def layer_with_groups(**kwargs):
    """A layer, and the state dict of one of its shape whose groups are reversed."""
    layer = FDConv2d(8, 6, 3, num_kernels=4, **kwargs)
    return layer, layer.state_dict() | {"fdw.group_index": 3 - DERIVED}


def test_groups_are_in_the_state_dict_where_they_cannot_be_derived():
    layer, state_dict = layer_with_groups()
    assert "fdw.group_index" not in layer.state_dict()
    layer.load_state_dict(state_dict)
    assert torch.equal(layer.state_dict()["fdw.group_index"].long(), 3 - DERIVED)
    # Derived groups that a state dict happens to hold need not be stored again.
    layer.load_state_dict(state_dict | {"fdw.group_index": DERIVED})
    assert "fdw.group_index" not in layer.state_dict()
    # Without the key the groups are those that follow from the shape.
    layer.load_state_dict(state_dict)
    layer.load_state_dict({key: value for key, value in state_dict.items() if key != "fdw.group_index"})
    assert "fdw.group_index" not in layer.state_dict()
    assert torch.equal(layer.fdw.group_index.long(), DERIVED)


def test_stored_groups_are_always_in_the_state_dict():
    layer, state_dict = layer_with_groups(stored_groups=True)
    assert torch.equal(layer.state_dict()["fdw.group_index"].long(), DERIVED)
    layer.load_state_dict(state_dict)
    assert torch.equal(layer.state_dict()["fdw.group_index"].long(), 3 - DERIVED)
    without = {key: value for key, value in state_dict.items() if key != "fdw.group_index"}
    with pytest.raises(RuntimeError, match=r"Missing key.*fdw\.group_index"):
        layer.load_state_dict(without)
    layer.load_state_dict(state_dict)
    layer.load_state_dict(without, strict=False)
    assert torch.equal(layer.fdw.group_index.long(), DERIVED)
    # A plain kernel has no groups: it is transformed here.
    layer.load_state_dict(state_dict)
    layer.load_state_dict(nn.Conv2d(8, 6, 3).state_dict())
    assert torch.equal(layer.fdw.group_index.long(), DERIVED)


def test_stored_groups_reach_every_layer():
    linear = FDLinear(8, 6, num_kernels=4, stored_groups=True)
    assert "fdw.group_index" in linear.state_dict()
    for name in ("resnet50_fdconv", "convnext_tiny_fdconv", "swin_tiny_patch4_window7_224_fdconv"):
        model = small(name, stored_groups=True)
        assert {key for key in model.state_dict() if key.endswith("group_index")} == groups_of(model).keys() != set()


def test_groups_are_a_layers_own():
    """What writes into one layer's buffer changes no other layer, built before or after."""
    layers = [FDConv2d(8, 6, 3, num_kernels=4) for _ in range(2)]
    layers[0].fdw.group_index.zero_()
    layers.append(FDConv2d(8, 6, 3, num_kernels=4))
    for layer in layers[1:]:
        assert torch.equal(layer.fdw.group_index.long(), DERIVED)


BAD_GROUPS = {
    "shape": torch.zeros(3, 3, dtype=torch.uint8),
    "transposed": torch.zeros(13, 18, dtype=torch.uint8),
    "flat": torch.zeros(18 * 13, dtype=torch.uint8),
    "empty": torch.zeros(0, dtype=torch.uint8),
    "too large": torch.full((18, 13), 4, dtype=torch.uint8),
    "negative": torch.full((18, 13), -1, dtype=torch.int16),
    "floats": torch.rand(18, 13),
    "whole floats": torch.ones(18, 13),
    "complex": torch.zeros(18, 13, dtype=torch.complex64),
    "booleans": torch.zeros(18, 13, dtype=torch.bool),
}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("kind", BAD_GROUPS)
def test_bad_groups_are_refused(kind, assign):
    layer = FDConv2d(8, 6, 3, num_kernels=4)
    with pytest.raises(RuntimeError, match=r"fdw\.group_index"):
        layer.load_state_dict(layer.state_dict() | {"fdw.group_index": BAD_GROUPS[kind]}, assign=assign)
    assert torch.equal(layer.fdw.group_index.long(), DERIVED)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_groups_of_every_integer_type_are_taken(dtype):
    layer, state_dict = layer_with_groups()
    layer.load_state_dict(state_dict | {"fdw.group_index": (3 - DERIVED).to(dtype)})
    expected, _ = layer_with_groups()
    expected.load_state_dict(state_dict)
    x = torch.randn(2, 8, 5, 5)
    assert relative_error(layer.eval()(x), expected.eval()(x)) < 1e-6
    with torch.no_grad():
        assert relative_error(layer(x), expected(x)) < 1e-6


def test_weights_of_a_single_kernel_miss_the_head():
    with pytest.raises(RuntimeError, match=r"Missing key.*ksm\.global_branch\.kernel\.weight"):
        build(num_kernels=8).load_state_dict(build(num_kernels=1).state_dict())


@pytest.mark.parametrize(("ours", "theirs"), [(8, 16), (16, 8), (1, 8)])
def test_another_number_of_kernels_is_named(ours, theirs):
    model, other = (build(num_kernels=number) for number in (ours, theirs))
    with pytest.raises(
        RuntimeError, match=rf"num_kernels(?s:.)*\b({ours}\b(?s:.)*\b{theirs}|{theirs}\b(?s:.)*\b{ours})\b"
    ):
        model.load_state_dict(other.state_dict())


@pytest.mark.parametrize("kind", [FDConv2d, FDLinear])
def test_skip_init(kind):
    arguments = (24, 20, 3) if kind is FDConv2d else (24, 20)
    layer = randomize(kind(*arguments, num_kernels=9)).eval()
    skipped = poison(nn.utils.skip_init(kind, *arguments, num_kernels=9)).eval()
    skipped.load_state_dict(layer.state_dict())
    x = torch.randn(2, 24, 6, 6) if kind is FDConv2d else torch.randn(2, 6, 24)
    assert relative_error(skipped(x), layer(x)) < 1e-6
    with torch.no_grad():
        assert relative_error(skipped(x), layer(x)) < 1e-6


def test_reset_after_to_empty():
    """torch's recipe without a checkpoint (FSDP's too): materialize, then ``reset_parameters`` of every module."""
    with torch.device("meta"):
        layer = FDConv2d(24, 20, 3, padding=1, num_kernels=9)
    poison(layer.to_empty(device="cpu"))
    for module in layer.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert torch.equal(layer.fdw.group_index.long(), torch.from_numpy(frequency_groups(60, 72, 9)))
    y = layer.train()(torch.randn(2, 24, 6, 6))
    assert y.isfinite().all()
    y.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


PATHS = [None, "plain", "rebuild"]


@pytest.mark.parametrize("path", PATHS)
def test_fake_tensors_stay_in_their_mode(path):
    """A forward under FakeTensorMode, as memory estimates run it, leaves real models as they were."""
    model = build(num_kernels=33)  # a number that no other test uses: nothing of its groups is kept yet
    set_path(model, path)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                y = model.eval()(torch.randn(2, 3, 40, 40))
        y.sum().backward()
        fake = build(num_kernels=34)
        set_path(fake, path)
        fake(torch.randn(2, 3, 40, 40)).sum().backward()
    model.zero_grad()
    for real in (model, build(num_kernels=34)):
        set_path(real, path)
        with torch.no_grad():
            assert type(real.eval()(torch.randn(2, 3, 40, 40))) is torch.Tensor
        y = real(torch.randn(2, 3, 40, 40))
        assert type(y) is torch.Tensor
        y.sum().backward()
        assert all(type(parameter.grad) is torch.Tensor for parameter in real.parameters())


@pytest.mark.skipif(
    torch.__version__ < (2, 14) and not torch.cuda.is_available(), reason="this torch needs a GPU's driver for it"
)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("train", [False, True])
def test_fake_tensors_of_a_gpu(path, train):
    """A GPU's memory is estimated on machines that have none."""
    with FakeTensorMode():
        with torch.device("cuda"):
            model = build(num_kernels=35).train(train)
        set_path(model, path)
        y = model(torch.randn(2, 3, 32, 32, device="cuda"))
        assert y.device.type == "cuda"
        assert y.shape == (2, 3)
        with torch.no_grad():
            assert model.eval()(torch.randn(1, 3, 32, 32, device="cuda")).device.type == "cuda"


@pytest.mark.parametrize("path", PATHS)
def test_models_train_after_others_were_built_in_inference_mode(path):
    with torch.inference_mode():
        inferring = build(num_kernels=36)
        set_path(inferring, path)
        inferring.eval()(torch.randn(2, 3, 36, 36))
    model = build(num_kernels=36)
    set_path(model, path)
    model(torch.randn(2, 3, 36, 36)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    copied = build(num_kernels=36)
    copied.load_state_dict(inferring.state_dict())
    set_path(copied, path)
    copied(torch.randn(2, 3, 36, 36)).sum().backward()


def test_layers_train_after_their_buffers_were_made_in_inference_mode():
    """A converter that works under inference_mode and hands out a state dict."""
    with torch.inference_mode():
        layer, state_dict = layer_with_groups()
        layer.load_state_dict(state_dict)
        state_dict = layer.state_dict()
    trained = FDConv2d(8, 6, 3, num_kernels=4)
    trained.load_state_dict(state_dict)
    trained(torch.randn(2, 8, 5, 5)).sum().backward()


@pytest.mark.parametrize(
    ("dtype", "named"),
    [
        (torch.complex64, "complex64"),
        (torch.float8_e4m3fn, "float8_e4m3fn"),
        (torch.int8, "torch.int8|floating point"),
        (torch.bool, "torch.bool|floating point"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [FDConv2d, FDLinear])
def test_dtypes_that_cannot_be_computed_in_are_named(kind, dtype, named):
    arguments = (8, 6, 3) if kind is FDConv2d else (8, 6)
    with pytest.raises((TypeError, ValueError, RuntimeError), match=named):
        kind(*arguments, num_kernels=4, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("fbm", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_layers_cast_to_dtypes_that_cannot_be_computed_in_name_them(dtype, fbm, grad):
    layer = FDConv2d(8, 6, 3, num_kernels=4, fbm=fbm).to(dtype)
    named = pytest.raises((TypeError, ValueError, RuntimeError), match="(?i)" + str(dtype).removeprefix("torch.")[:7])
    with torch.set_grad_enabled(grad), named:
        layer(torch.randn(2, 8, 5, 5))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16], ids=str)
def test_weights_of_low_precision_are_read_as_they_are(dtype):
    """As ``nn.Conv2d`` reads them: nothing is rounded beyond what the file rounded."""
    conv = nn.Conv2d(8, 6, 3)
    layer = FDConv2d(8, 6, 3, num_kernels=4)
    weights = {key: value.to(dtype) for key, value in conv.state_dict().items()}
    conv.load_state_dict(weights)
    layer.load_state_dict(weights)
    x = torch.randn(2, 8, 5, 5)
    assert relative_error(layer(x), conv(x)) < 1e-5
    ours = randomize(FDConv2d(8, 6, 3, num_kernels=4)).to(dtype).state_dict()
    layer.load_state_dict(ours)
    assert torch.equal(layer.fdw.spectrum, ours["fdw.spectrum"].float())


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64], ids=str)
def test_plain_integer_kernels_are_read_as_plain_layers_read_them(dtype):
    conv, layer = nn.Conv2d(8, 6, 3), FDConv2d(8, 6, 3, num_kernels=4)
    weights = {"weight": torch.randint(-9, 9, (6, 8, 3, 3), dtype=dtype), "bias": torch.randn(6)}
    conv.load_state_dict(weights)
    layer.load_state_dict(weights)
    x = torch.randn(2, 8, 5, 5)
    assert relative_error(layer(x), conv(x)) < 1e-5


def test_plain_complex_kernels_are_refused():
    """Half of them would be lost."""
    weights = {"weight": torch.randn(6, 8, 3, 3, dtype=torch.complex64), "bias": torch.randn(6)}
    with pytest.raises((RuntimeError, TypeError), match="complex"):
        FDConv2d(8, 6, 3, num_kernels=4).load_state_dict(weights)


@pytest.mark.skipif(OLD_TIMM, reason="this timm builds neither on the meta device")
@pytest.mark.parametrize("name", ["convnext_tiny_fdconv", "swin_tiny_patch4_window7_224_fdconv"])
def test_other_families_from_meta(name):
    model = example(name)
    with torch.device("meta"):
        new = small(name)
    new.load_state_dict(model.state_dict(), assign=True)
    for module in new.modules():  # timm's own buffers, which no state dict holds
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()
    assert all(torch.equal(buffer, groups_of(model)[key]) for key, buffer in groups_of(new).items())


@pytest.mark.parametrize("kind", [FDConv2d, BandModulatedConv2d])
def test_plain_weights_fill_a_layer_without_memory(kind):
    conv = nn.Conv2d(6, 8, 3, padding=1)
    options = {} if kind is BandModulatedConv2d else {"num_kernels": 4}
    with torch.device("meta"):
        layer = kind(6, 8, 3, padding=1, **options).eval()
    layer.load_state_dict(conv.state_dict(), assign=True)
    assert not any(tensor.is_meta for tensor in layer.state_dict().values())
    x = torch.randn(3, 6, 9, 7)
    assert relative_error(layer(x), conv(x)) < 1e-5


def test_what_fits_of_another_number_of_kernels_loads_without_strict():
    eight, four = FDConv2d(6, 8, 3, num_kernels=8), FDConv2d(6, 8, 3, num_kernels=4)
    shapes = {key: value.shape for key, value in four.state_dict().items()}
    fitting = {key: value for key, value in eight.state_dict().items() if value.shape == shapes[key]}
    missing, _ = four.load_state_dict(fitting, strict=False)
    assert missing == ["ksm.global_branch.kernel.weight", "ksm.global_branch.kernel.bias"]
    assert torch.equal(four.fdw.spectrum, eight.fdw.spectrum)
