"""What other libraries hang on modules works: FDConv layers call their parts through the parts' own ``forward``.

Pruning, norms of weights, offloading, sharding, adapters and class activation maps all change or read a part around its
``forward``. The oracle is a layer without them that holds the same effective weights.
"""

import copy
import multiprocessing
from collections import Counter

import pytest
import timm
import torch
import torch.distributed as dist
import torch.nn.utils.prune as prune
from accelerate import cpu_offload, disk_offload, dispatch_model
from conftest import randomize, relative_error
from contract import each_family, example, images, plain_example
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

from fdconv_zoo import FDConv2d, FDLinear, set_path
from fdconv_zoo.layers import BandModulatedConv2d

PARTS = (  # of a 3x3 layer: each module that holds parameters
    "fdw", "ksm.global_branch.reduce", "ksm.global_branch.norm", "ksm.global_branch.act", "ksm.global_branch.channel",
    "ksm.global_branch.filter", "ksm.global_branch.spatial", "ksm.global_branch.kernel", "ksm.local_branch.norm",
    "ksm.local_branch.conv", "fbm.attention",
)  # fmt: skip
HOLDERS = ("", "fdw", "ksm", "ksm.global_branch", "ksm.local_branch", "fbm")  # what a wrapper may be put around
WEIGHTS = [(part, "spectrum" if part == "fdw" else "weight") for part in PARTS if not part.endswith(("norm", "act"))]
X = torch.linspace(-3, 3, 3 * 8 * 6 * 7).sin().view(3, 8, 6, 7)


def build(**kwargs):
    torch.manual_seed(1)
    return randomize(FDConv2d(8, 6, 3, padding=1, num_kernels=4, **kwargs))


def dynamic_layers(model):
    kinds = FDConv2d, FDLinear, BandModulatedConv2d
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def gradients(layer, x=X):
    layer.zero_grad()
    x = x.clone().requires_grad_()
    y = layer(x)
    (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    return {"output": y.detach(), "input": x.grad} | {key: p.grad for key, p in layer.named_parameters()}


def assert_same(actual, expected, tolerance=1e-5):
    assert actual.keys() == expected.keys()
    floor = 1e-3 * max(value.abs().max() for value in expected.values())
    for name, value in expected.items():
        error = (actual[name] - value).abs().max()
        assert error <= tolerance * (value.abs().max() + floor), name


@each_family
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_part_fires_its_forward_hook_once(name, batch, train, grad):
    model = copy.deepcopy(example(name)).train(train)
    fired = Counter()
    for key, module in model.named_modules():
        module.register_forward_hook(lambda *_, key=key: fired.update([key]))
    with torch.set_grad_enabled(grad):
        model(images(batch))
    silent, often = [], []
    for layer_name, layer in dynamic_layers(model).items():
        for part, _ in layer.named_modules(prefix=layer_name):
            (silent if not fired[part] else often if fired[part] > 1 else []).append(part)
    assert not silent
    assert not often
    # Everything else as in the plain model.
    plain, plain_fired = copy.deepcopy(plain_example(name)).train(train), Counter()
    for key, module in plain.named_modules():
        module.register_forward_hook(lambda *_, key=key: plain_fired.update([key]))
    plain(images(batch))
    assert {key: fired[key] for key in plain_fired} == plain_fired


@pytest.mark.parametrize("layer", [FDConv2d(8, 6, 3, padding=1, num_kernels=4), FDLinear(7, 6, num_kernels=4)])
def test_pre_hooks_and_backward_hooks(layer):
    randomize(layer).eval()
    expected = gradients(layer)
    fired = Counter()
    for key, module in layer.named_modules():
        module.register_forward_pre_hook(lambda *_, key=key: fired.update([key, "before"]))
        module.register_full_backward_pre_hook(lambda *_, key=key: fired.update([key]))
        module.register_full_backward_hook(lambda *_, key=key: fired.update([key]))
    assert_same(gradients(layer), expected)
    assert {key for key, _ in layer.named_modules()} <= fired.keys()


def test_a_hook_may_replace_what_a_part_returns():
    layer = build().eval()
    silent = build().eval()
    with torch.no_grad():
        for weight in (silent.fbm.attention.weight, silent.fbm.attention.bias, silent.ksm.local_branch.conv.weight):
            weight.zero_()
    layer.fbm.register_forward_hook(lambda module, inputs, output: inputs[0])
    layer.ksm.local_branch.conv.register_forward_hook(
        lambda module, inputs, output: output._replace(taps=torch.zeros_like(output.taps))
    )
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            assert relative_error(layer(X).detach(), silent(X).detach()) < 1e-5


class Halved(nn.Module):
    """A parametrization with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5))

    def forward(self, weight):
        return weight * self.factor


def old_spectral_norm(module, name):
    nn.utils.spectral_norm(module, name, n_power_iterations=3)


REWRITERS = {
    "prune l1": lambda module, name: prune.l1_unstructured(module, name, 0.4),
    "prune random": lambda module, name: prune.random_unstructured(module, name, 0.4),
    "prune structured": lambda module, name: prune.ln_structured(module, name, 0.4, n=2, dim=0),
    "prune twice": lambda module, name: [prune.random_unstructured(module, name, 0.3) for _ in range(2)],
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": old_spectral_norm,
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "parametrization": lambda module, name: parametrize.register_parametrization(module, name, Halved()),
}


def effective(layer):
    """A new layer with the weights that a layer last computed with."""
    plain = FDConv2d(8, 6, 3, padding=1, num_kernels=4)
    values = {}
    for key in plain.state_dict():
        owner, _, name = key.rpartition(".")
        values[key] = getattr(layer.get_submodule(owner), name).detach().clone()
    plain.load_state_dict(values)
    return plain.eval()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch would have the new weight_norm used
@pytest.mark.parametrize("path", [None, "plain"])
@pytest.mark.parametrize("rewriter", REWRITERS)
def test_rewritten_weights(rewriter, path):
    """Two optimizer steps, and a state dict that goes into another layer of the kind, which has run before."""
    for part, name in WEIGHTS:
        if rewriter in ("prune structured", "old spectral_norm", "spectral_norm") and part == "fbm.attention":
            continue  # three filters: nothing is left to see
        layer, twin = build(), build()
        for each in (layer, twin):
            set_path(each, path)
            REWRITERS[rewriter](each.get_submodule(part), name)
        twin.eval()(X)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        for step in range(2):
            optimizer.zero_grad()
            layer.train()(X).square().mean().backward()
            assert all(p.grad is not None for p in layer.parameters() if p.requires_grad), (part, step)
            optimizer.step()
            for grad in (True, False):
                with torch.set_grad_enabled(grad):
                    actual = layer.eval()(X)
                assert relative_error(actual, effective(layer)(X)) < 1e-5, (part, step)
        twin.load_state_dict(copy.deepcopy(layer.state_dict()))
        with torch.no_grad():
            assert relative_error(twin(X), layer(X)) < 1e-5, part


@pytest.mark.parametrize(("part", "name"), WEIGHTS)
def test_pruning_can_be_made_permanent(part, name):
    layer = build().eval()
    before = layer(X).detach()
    prune.random_unstructured(layer.get_submodule(part), name, 0.5)
    layer(X)
    pruned = layer(X).detach()
    assert relative_error(pruned, before) > 1e-4
    prune.remove(layer.get_submodule(part), name)
    assert set(layer.state_dict()) == set(build().state_dict())
    assert relative_error(layer(X).detach(), pruned) < 1e-6


OPTIONS = [{}, dict(ksm_global=False), dict(num_kernels=1), dict(ksm_global=False, ksm_local=False), dict(fbm=False)]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("grad", [False, True])
def test_cpu_offload(options, grad):
    layer = nn.Sequential(randomize(FDConv2d(8, 6, 3, padding=1, **dict(num_kernels=4) | options))).eval()
    expected = layer(X).detach()
    for offload_buffers in (False, True):
        offloaded = copy.deepcopy(layer)
        cpu_offload(offloaded, execution_device=torch.device("cpu"), offload_buffers=offload_buffers)
        assert any(parameter.is_meta for parameter in offloaded.parameters())
        for _ in range(2):
            with torch.set_grad_enabled(grad):
                assert relative_error(offloaded(X).detach(), expected) < 1e-6


def test_disk_offload(tmp_path):
    layer = nn.Sequential(build(), FDConv2d(6, 6, 1, num_kernels=4)).eval()
    with torch.no_grad():
        expected = layer(X)
        disk_offload(layer, str(tmp_path), execution_device=torch.device("cpu"), offload_buffers=True)
        assert relative_error(layer(X), expected) < 1e-6


@each_family
def test_dispatch_model(name, tmp_path):
    model, x = copy.deepcopy(example(name)), images()
    with torch.no_grad():
        expected = model(x)
        places = {child: "disk" for child, _ in model.named_children()}
        places[next(iter(places))] = "cpu"
        places |= {key: "cpu" for key, _ in model.named_parameters(recurse=False)}
        dispatched = dispatch_model(
            model, places, main_device="cpu", offload_dir=str(tmp_path), offload_buffers=True, force_hooks=True
        )
        assert relative_error(dispatched(x), expected) < 1e-5


@pytest.fixture
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


# Each alone, then several, and the layer around them: what lies inside is freed as soon as its forward returns.
NESTED = [(holder,) for holder in (*HOLDERS, *PARTS)] + [(*HOLDERS[1:], ""), (*PARTS, "")]


def full(values):
    return {key: v.full_tensor() if hasattr(v, "full_tensor") else v for key, v in values.items()}


@pytest.mark.parametrize("path", [None, "plain"])
@pytest.mark.parametrize(
    "holders", NESTED, ids=lambda nested: nested[0] if len(nested) == 1 else f"{len(nested)} nested"
)
def test_fsdp2_of_parts(process_group, holders, path):
    layer = build().eval()
    set_path(layer, path)
    expected = gradients(layer)
    for holder in sorted(holders, key=len, reverse=True):  # from the inside out
        fully_shard(layer.get_submodule(holder), mesh=process_group)
    for _ in range(2):
        assert_same(full(gradients(layer)), expected)
    with torch.no_grad():
        assert relative_error(layer(X), expected["output"]) < 1e-5


@each_family
def test_fsdp2_of_models(process_group, name):
    model, x = copy.deepcopy(example(name)), images()
    expected = gradients(model, x)
    for layer in dynamic_layers(model).values():
        fully_shard(layer, mesh=process_group)
    fully_shard(model, mesh=process_group)
    assert_same(full(gradients(model, x)), expected, 1e-4)


def two_steps(layer):
    """The output and the parameters after two steps of an optimizer."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        layer(X).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        return {"output": layer(X), **full(dict(layer.named_parameters()))}


def shard_in_two(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    layer = build().eval()
    for holder in ("fdw", "ksm", ""):
        fully_shard(layer.get_submodule(holder), mesh=init_device_mesh("cpu", (2,)))
    torch.save(two_steps(layer), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_fsdp2_in_two_processes(tmp_path):
    context = multiprocessing.get_context("spawn")  # MKL, which a fork may find locked, has run here
    processes = [context.Process(target=shard_in_two, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    expected = two_steps(build().eval())
    for rank in range(2):
        assert_same(torch.load(tmp_path / f"{rank}.pt"), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.usefixtures("process_group")
def test_fsdp1_of_parts(holder):
    layer = build().eval()
    expected = gradients(layer)
    owner, _, name = holder.rpartition(".")
    wrapped = FullyShardedDataParallel(layer.get_submodule(holder), device_id=torch.device("cpu"), use_orig_params=True)
    if holder:
        setattr(layer.get_submodule(owner), name, wrapped)
    else:
        layer = wrapped
    actual = {key.replace("_fsdp_wrapped_module.", ""): value for key, value in gradients(layer).items()}
    assert_same({key: value.view(expected[key].shape) for key, value in actual.items()}, expected)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("static_graph", [False, True])
def test_ddp(static_graph):
    layer = build()
    expected = gradients(copy.deepcopy(layer).train())
    wrapped = DistributedDataParallel(layer.train(), static_graph=static_graph)
    for _ in range(2):
        actual = {key.removeprefix("module."): value for key, value in gradients(wrapped).items()}
        assert_same(actual, expected)


@each_family
@pytest.mark.parametrize("batch", [1, 3])
def test_sync_batch_norm(name, batch):
    model, x = copy.deepcopy(example(name)), images(batch)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert not any(type(module) is nn.BatchNorm2d for module in synced.modules())
    for train in (False, True):
        results = []
        for each in (synced, model):
            torch.manual_seed(0)  # of Swin's stochastic depth
            results.append(each.train(train)(x).detach())
        assert relative_error(*results) < 1e-5


def adapted_names(model):
    return {name for name, module in model.named_modules() if hasattr(module, "lora_A")}


@pytest.mark.parametrize("name", ["resnet10s_fdconv", "swin_tiny_patch4_window7_224_fdconv"])
def test_lora_on_all_linear_layers_adapts_modulators(name):
    """``all-linear`` means ``nn.Linear``: KSM's heads. FDConv's kernels, also those of FDLinear, stay frozen."""
    peft = pytest.importorskip("peft")
    model, x = copy.deepcopy(example(name)), images()
    linear = {key for key, module in model.named_modules() if isinstance(module, nn.Linear)}
    with torch.no_grad():
        expected = model(x)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", r=2))
    heads = {key for key in linear if ".ksm.global_branch." in key}
    assert heads
    assert heads <= {key.removeprefix("base_model.model.") for key in adapted_names(adapted)} <= linear
    with torch.no_grad():
        assert relative_error(adapted(x), expected) < 1e-5
    check_adapter(adapted, x)


def check_adapter(adapted, x):
    """Its factors are trained, nothing else; merged into the weights it computes the same."""
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained)
    assert trained
    randomize_factors = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=randomize_factors))
    adapted.eval()
    y = adapted(x)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained.values())
    with torch.no_grad():
        for _ in range(2):
            assert relative_error(adapted(x), y) < 1e-5
        with adapted.disable_adapter():
            assert relative_error(adapted(x), y) > 1e-4
        assert relative_error(adapted.merge_and_unload()(x), y) < 1e-4


@pytest.mark.parametrize("path", [None, "plain"])
def test_lora_on_spectra(path):
    """``target_parameters`` adapts spectra: to peft the rows are "experts", each a matrix of (columns, 2)."""
    peft = pytest.importorskip("peft")
    model, x = copy.deepcopy(example("resnet10s_fdconv")), images(size=(32, 32))
    set_path(model, path)
    with torch.no_grad():
        expected = model(x)
    config = peft.LoraConfig(target_modules=[], target_parameters=["fdw.spectrum"], r=1)
    adapted = peft.get_peft_model(model, config)
    assert len(adapted_names(adapted)) == len(dynamic_layers(example("resnet10s_fdconv")))
    with torch.no_grad():
        assert relative_error(adapted(x), expected) < 1e-5
    check_adapter(adapted, x)


def cam(kind, model, x):
    grad_cam = pytest.importorskip("pytorch_grad_cam")
    target = pytest.importorskip("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
    with getattr(grad_cam, kind)(model=model, target_layers=[model.layer3[-1]]) as explain:
        return torch.from_numpy(explain(input_tensor=x, targets=[target(0)] * len(x)))


@pytest.mark.parametrize("kind", ["GradCAM", "EigenCAM", "FullGrad"])
def test_class_activation_maps(kind):
    model, x = copy.deepcopy(example("resnet10s_fdconv")), images(size=(32, 32))
    actual = cam(kind, model, x)
    assert actual.shape == (2, 32, 32)
    assert actual.isfinite().all()
    assert actual.std() > 0
    set_path(model, "plain")
    assert (cam(kind, model, x) - actual).abs().max() < 1e-3


@pytest.mark.parametrize("kind", ["GradCAM", "EigenCAM", "HiResCAM"])
def test_class_activation_maps_of_a_converted_model_are_the_plain_ones(kind):
    plain = plain_example("resnet10s_fdconv")
    model = timm.create_model("resnet10s_fdconv", layers=(1, 1, 2, 1), channels=(32, 48, 64, 96), num_classes=11).eval()
    model.load_state_dict(plain.state_dict())
    x = images(size=(32, 32))
    assert (cam(kind, model, x) - cam(kind, plain, x)).abs().max() < 1e-3


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("path", [None, "plain"])
def test_activation_checkpoints(use_reentrant, path):
    layer = build().eval()
    set_path(layer, path)
    expected = gradients(layer)

    class Checkpointed(nn.Module):
        def forward(self, x):
            return checkpoint(layer, x, use_reentrant=use_reentrant)

    layer.zero_grad()
    actual = gradients(Checkpointed()) | {key: p.grad for key, p in layer.named_parameters()}
    assert_same(actual, expected)


@pytest.mark.parametrize("part", HOLDERS[1:])
def test_activation_checkpoints_of_parts(part):
    layer = build().eval()
    expected = gradients(layer)
    owner, _, name = part.rpartition(".")
    setattr(layer.get_submodule(owner), name, checkpoint_wrapper(layer.get_submodule(part)))
    actual = {key.replace("_checkpoint_wrapped_module.", ""): value for key, value in gradients(layer).items()}
    assert_same(actual, expected)


@each_family
def test_timms_grad_checkpointing(name):
    model, x = copy.deepcopy(example(name)), images()
    expected = gradients(model, x)
    model.set_grad_checkpointing(True)
    assert_same(gradients(model, x), expected, 1e-4)
