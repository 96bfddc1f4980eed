"""KSM in a few Triton kernels, against its modules in float64."""

import copy

import pytest
import torch
from conftest import randomize
from interpreter import DEVICE, outside, run_in_interpreter, runs_kernels
from torch import nn
from torch.nn.modules.module import register_module_full_backward_hook

from fdconv_zoo import FDConv2d, set_path
from fdconv_zoo.layers.untouched import TouchedError
from fdconv_zoo.ops import triton_support
from fdconv_zoo.ops.kernels_plain import LocalFactors


@outside
def test_in_the_interpreter():
    run_in_interpreter(__file__)


# Endings of the names of arguments that are no pointers.
NUMBERS = ("eps", "momentum", "temperature")
COUNTS = ("batch", "channels", "hidden", "width", "_blocks", "_size", "_shares", "_programs")


@outside
def test_no_product_is_rounded_to_tf32():
    """Triton's compiler takes some sums of products for matrix products in tf32; its interpreter does not."""
    compiler = pytest.importorskip("triton.compiler")
    backends = pytest.importorskip("triton.backends.compiler")
    from fdconv_zoo.ops import modulators_jit

    constants = dict(TRAINING=True, IMAGES=16, OUTPUTS=32, UNITS=32, CHANNELS=32, SHARES=32, ELEMENTS=1024)
    kernels = [getattr(modulators_jit, name) for name in vars(modulators_jit) if not name.startswith("_")]
    kernels = [kernel for kernel in kernels if hasattr(kernel, "arg_names")]
    assert len(kernels) == 5
    for kernel in kernels:
        names = kernel.arg_names
        types = dict.fromkeys(names, "*fp32") | {name: "fp32" for name in names if name.endswith(NUMBERS)}
        types |= {name: "i32" for name in names if name.endswith(COUNTS)}
        types |= {name: "constexpr" for name in constants if name in names}
        source = compiler.ASTSource(kernel, types, {(names.index(k),): v for k, v in constants.items() if k in names})
        program = compiler.compile(source, target=backends.GPUTarget("cuda", 90, 32)).asm["ttir"]
        assert "tt.dot" not in program, kernel.__name__


# Arguments and options of a layer, images, and whether it is in training.
CASES = {
    "one image": ((64, 64, 1), {}, 1, False),
    "one image in training": ((48, 96, 3), {}, 1, True),
    "two images in training": ((21, 7, (3, 1)), {"num_kernels": 5}, 2, True),
    "running statistics": ((48, 96, 3), {"groups": 3}, 5, False),
    "groups": ((48, 96, 3), {"groups": 3}, 5, True),
    "several blocks of images": ((40, 50, (1, 2)), {"num_kernels": 9}, 33, True),
    "temperatures": ((512, 130, 1), {"temperature": 3.0, "kernel_temperature": 0.6}, 9, True),
    "wide": ((1040, 24, 1), {"num_kernels": 4}, 1, False),
    "one kernel": ((20, 7, 3), {"num_kernels": 1}, 3, True),
    "global alone": ((20, 7, 3), {"ksm_local": False}, 5, True),
    "local alone": ((20, 7, 3), {"ksm_global": False}, 5, True),
}


def make(case="groups"):
    """A layer on the device, its twin in float64 on the CPU, and pooled features."""
    arguments, options, batch, training = CASES[case]
    layer = randomize(FDConv2d(*arguments, **options), std=0.1).train(training)
    twin = copy.deepcopy(layer).double()
    set_path(layer, "triton")
    set_path(twin, "plain")
    return layer.to(DEVICE).ksm, twin.ksm, torch.randn(batch, arguments[0], device=DEVICE)


def tensors(modulators):
    found = {name: tensor for name, tensor in modulators._asdict().items() if name != "local"}
    if isinstance(modulators.local, LocalFactors):
        found |= modulators.local._asdict()
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def differentiate(ksm, pooled, modulators, **options):
    """Gradients of pooled and the parameters, for fixed ones of the modulators."""
    generator = torch.Generator().manual_seed(1)
    found = tensors(modulators)
    grads = [
        torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor) for tensor in found.values()
    ]
    names, parameters = zip(*ksm.named_parameters(), strict=True)
    gradients = torch.autograd.grad(list(found.values()), (pooled, *parameters), grads, **options)
    return dict(zip(("pooled", *names), gradients, strict=True))


def check(found, expected, limit):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape
        # The gradients of StarReLU's scalars are sums of many terms that nearly cancel.
        most = 50 * limit if ".act." in name else limit
        assert (found[name].detach().cpu().double() - tensor).norm() <= most * tensor.double().norm(), name


@runs_kernels
@pytest.mark.parametrize("case", CASES)
def test_modulators_and_gradients_are_those_of_the_modules(case):
    ksm, twin, pooled = make(case)
    # Two images' statistics make any two values 1 and -1: what little is left amplifies rounding.
    factor = 200 if case == "two images in training" else 1
    pooled, seen = pooled.requires_grad_(), pooled.detach().cpu().double().requires_grad_()
    modulators, expected = ksm._predict_at_once(pooled), twin(seen, assemble=False)
    check(tensors(modulators), tensors(expected), 2e-6 * factor)
    gradients = differentiate(ksm, pooled, modulators)
    check(gradients, differentiate(twin, seen, expected), 5e-6 * factor)
    check(dict(ksm.named_buffers()), dict(twin.named_buffers()), 1e-6)


@runs_kernels
def test_results_are_the_same_each_time():
    ksm, _, pooled = make("several blocks of images")
    modulators = ksm._predict_at_once(pooled.requires_grad_())
    gradients = differentiate(ksm, pooled, modulators)
    again = ksm._predict_at_once(pooled)
    assert all(torch.equal(one, tensors(again)[name]) for name, one in tensors(modulators).items())
    assert all(torch.equal(one, gradients[name]) for name, one in differentiate(ksm, pooled, again).items())
    with torch.no_grad():
        again = tensors(ksm(pooled, assemble=False))
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors(modulators).items())


@runs_kernels
def test_nan_stays():
    ksm, _, pooled = make("running statistics")
    pooled[1, 5] = float("nan")
    found = tensors(ksm(pooled, assemble=False))
    assert all(found[name][1].isnan().any() and not found[name][0].isnan().any() for name in found if name != "taps")


@runs_kernels
def test_statistics_follow_those_of_the_modules():
    ksm, twin, _ = make()
    for batch in (4, 1, 17):
        pooled = torch.randn(batch, 48, device=DEVICE)
        version = ksm.global_branch.norm.running_mean._version
        ksm._predict_at_once(pooled)
        assert (ksm.global_branch.norm.running_mean._version > version) == (batch > 1)
        twin(pooled.cpu().double(), assemble=False)
    check(dict(ksm.named_buffers()), dict(twin.named_buffers()), 1e-6)
    assert ksm.global_branch.norm.num_batches_tracked == 2


@runs_kernels
def test_gradients_are_as_many_as_are_needed():
    ksm, _, pooled = make()
    expected = differentiate(ksm, pooled.requires_grad_(), ksm(pooled, assemble=False))
    ksm.global_branch.reduce.requires_grad_(False)
    seen = []
    ksm.global_branch.channel.weight.register_hook(lambda grad: seen.append(grad))
    found = tensors(ksm(pooled.detach(), assemble=False))
    generator = torch.Generator().manual_seed(1)
    grads = [
        torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor) for tensor in found.values()
    ]
    torch.autograd.backward(list(found.values()), grads)
    assert ksm.global_branch.reduce.weight.grad is None
    for name, parameter in ksm.named_parameters():
        assert parameter.grad is None if "reduce" in name else torch.equal(parameter.grad, expected[name])
    assert torch.equal(seen[0], expected["global_branch.channel.weight"])
    ksm.zero_grad()
    tensors(ksm(pooled.detach(), assemble=False))["windows"].sum().backward()  # others have no gradient
    assert ksm.local_branch.norm.weight.grad.any()
    assert not ksm.global_branch.filter.weight.grad.any()


@runs_kernels
@pytest.mark.parametrize("case", ["groups", "running statistics", "global alone", "local alone"])
def test_gradients_are_differentiated_and_batched(case):
    ksm, twin, pooled = make(case)

    def penalty(ksm, pooled):
        first = differentiate(ksm, pooled, ksm(pooled, assemble=False), create_graph=True)
        total = sum(grad.square().sum() for grad in first.values())
        return torch.autograd.grad(total, [pooled, *ksm.parameters()], allow_unused=True, materialize_grads=True)

    pooled, seen = pooled.requires_grad_(), pooled.detach().cpu().double().requires_grad_()
    found, expected = penalty(ksm, pooled), penalty(twin, seen)
    for one, other in zip(found, expected, strict=True):
        assert (one.cpu().double() - other).norm() <= 1e-4 * other.norm()
    _, out = tensors(ksm(pooled, assemble=False)).popitem()
    grads = torch.randn(2, *out.shape, device=DEVICE)
    (both,) = torch.autograd.grad(out, pooled, grads, is_grads_batched=True, retain_graph=True)
    one_by_one = torch.stack([torch.autograd.grad(out, pooled, grad, retain_graph=True)[0] for grad in grads])
    assert (both - one_by_one).norm() <= 1e-5 * one_by_one.norm()


@runs_kernels
@pytest.mark.parametrize("case", ["groups", "running statistics", "one kernel", "global alone", "local alone"])
def test_torchs_operations_stand_in_for_kernels_that_do_not_compile(case, monkeypatch):
    ksm, twin, pooled = make(case)
    monkeypatch.setattr(triton_support, "_failures", ["a test"])
    monkeypatch.setattr(triton_support, "problem", lambda *_: None)  # the path has been chosen before
    pooled, seen = pooled.requires_grad_(), pooled.detach().cpu().double().requires_grad_()
    modulators, expected = ksm._predict_at_once(pooled), twin(seen, assemble=False)
    check(tensors(modulators), tensors(expected), 2e-6)
    check(differentiate(ksm, pooled, modulators), differentiate(twin, seen, expected), 5e-6)
    check(dict(ksm.named_buffers()), dict(twin.named_buffers()), 1e-6)


TOUCHES = {
    "forward hook": lambda ksm: ksm.global_branch.filter.register_forward_hook(lambda *_: None),
    "backward hook": lambda ksm: ksm.local_branch.norm.register_full_backward_hook(lambda *_: None),
    "backward pre-hook": lambda ksm: ksm.global_branch.act.register_full_backward_pre_hook(lambda *_: None),
    "another norm": lambda ksm: setattr(ksm.global_branch, "norm", nn.BatchNorm2d(16)),
    "synchronized": nn.SyncBatchNorm.convert_sync_batchnorm,
    "no momentum": lambda ksm: setattr(ksm.global_branch.norm, "momentum", None),
    "no running statistics": lambda ksm: ksm.global_branch.norm.register_buffer("running_mean", None),
    "another path": lambda ksm: set_path(ksm, "plain"),
    "double": lambda ksm: ksm.double(),
    "a head of another size": lambda ksm: setattr(ksm.global_branch, "channel", nn.Linear(4, 48)),
}


@runs_kernels
@pytest.mark.parametrize("name", TOUCHES)
def test_modules_are_called_where_that_may_differ(name):
    ksm, _, pooled = make()
    ksm._predict_at_once(pooled)
    TOUCHES[name](ksm)
    with pytest.raises(TouchedError):
        ksm._predict_at_once(pooled)


@runs_kernels
def test_modules_are_called_while_all_are_observed_or_inputs_do_not_fit():
    ksm, _, pooled = make()
    handle = register_module_full_backward_hook(lambda *_: None)
    try:
        with pytest.raises(TouchedError):
            ksm._predict_at_once(pooled)
    finally:
        handle.remove()
    for other in (pooled[:, :40].contiguous(), pooled.t().contiguous().t(), pooled.double(), pooled[:0], pooled[0]):
        with pytest.raises(TouchedError):
            ksm._predict_at_once(other)
    with pytest.raises(TouchedError):
        torch.func.vmap(ksm._predict_at_once)(pooled[:, None])


@runs_kernels
def test_the_operators_keep_torchs_rules():
    ksm, _, pooled = make()
    found, statistics = ksm.global_branch.tensors()
    found = [tensor.detach() for tensor in (*found, *ksm.local_branch.tensors()) if tensor is not None]
    arguments = (pooled, found, *statistics, [1.0, 2.0, 1e-5, 1e-5, 0.1], [3, 3, 3, 3])
    operators, rules = torch.ops.fdconv_zoo, ("test_schema", "test_faketensor")
    torch.library.opcheck(operators.predict_modulators_triton.default, arguments, test_utils=rules)
    torch.library.opcheck(operators.predict_modulators_triton_in_training.default, arguments, test_utils=rules)
    *results, state = operators.predict_modulators_triton(*arguments)
    arguments = (results, pooled, found, results, state, *arguments[-2:], True)
    torch.library.opcheck(operators.predict_modulators_triton_backward.default, arguments, test_utils=rules)
