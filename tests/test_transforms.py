"""torch.func and autograd's own transforms through the layers, on every path, in double precision.

The oracles are finite differences for derivatives, and loops for what vmap does at once.
"""

import copy

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from conftest import randomize, relative_error
from torch import nn
from torch.autograd import functional
from torch.func import (
    functional_call,
    grad,
    grad_and_value,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    stack_module_state,
    vjp,
    vmap,
)

from fdconv_zoo import FDConv2d, FDLinear, set_path
from fdconv_zoo.layers import BandModulatedConv2d

F64 = dict(dtype=torch.float64)
LAYERS = {
    "3x3": (lambda: FDConv2d(4, 3, 3, padding=1, num_kernels=3, **F64), (4, 4, 5)),
    "1x1": (lambda: FDConv2d(4, 6, 1, num_kernels=3, **F64), (4, 3, 3)),
    "grouped": (lambda: FDConv2d(4, 6, 3, stride=2, padding=1, groups=2, num_kernels=3, **F64), (4, 5, 4)),
    "one kernel": (lambda: FDConv2d(4, 3, 3, padding=1, num_kernels=1, **F64), (4, 4, 5)),
    "no branch": (lambda: FDConv2d(4, 3, 3, 1, 1, num_kernels=3, ksm_global=False, ksm_local=False, **F64), (4, 4, 5)),
    "linear": (lambda: FDLinear(4, 6, num_kernels=3, **F64), (5, 4)),
    "bands": (lambda: BandModulatedConv2d(4, 4, 3, padding=1, groups=4, **F64), (4, 5, 4)),
}  # fmt: skip
PATHS = [None, "rebuild", "plain"]
CASES = [pytest.param(name, path, id=f"{name}, {path or 'default'}") for name in LAYERS for path in PATHS]
every_case = pytest.mark.parametrize(("name", "path"), CASES)
# The path that is forced to rebuild may refuse second derivatives, with its own message.
twice = pytest.mark.parametrize(("name", "path"), [case for case in CASES if case.values[1] != "rebuild"])


def build(name, path=None, seed=0):
    make, shape = LAYERS[name]
    torch.manual_seed(seed)
    layer = randomize(make()).eval()
    set_path(layer, path)
    x, v, w = (torch.randn(2, *shape, **F64) for _ in range(3))
    return layer, x, v, w


def state(layer):
    return {key: value.detach() for key, value in layer.named_parameters()}


def call(layer, parameters, x):
    return functional_call(layer, parameters, (x,))


def weighted(y):
    """A scalar that no symmetry of y makes trivial."""
    return (y * torch.linspace(-1, 2, y.numel(), **F64).view(y.shape)).sum() + y.pow(3).mean()


@torch.no_grad()
def directional(function, x, v, step=1e-5):
    """The derivative of a function at x along v, by central differences."""
    return (function(x + step * v) - function(x - step * v)) / (2 * step)


def finite_jacobian(function, x):
    """(*y.shape, *x.shape)."""
    directions = torch.eye(x.numel(), **F64).view(-1, *x.shape)
    columns = torch.stack([directional(function, x, direction) for direction in directions], dim=-1)
    return columns.view(*columns.shape[:-1], *x.shape)


@torch.no_grad()
def second_directional(function, x, v, step=1e-4):
    """v^T H v of a scalar function."""
    return (function(x + step * v) - 2 * function(x) + function(x - step * v)) / step**2


def close(actual, expected, tolerance=1e-5):
    actual, expected = torch.as_tensor(actual).detach(), torch.as_tensor(expected).detach()
    assert actual.shape == expected.shape
    assert expected.abs().max() > 0
    error = relative_error(actual, expected)
    assert error < tolerance, error


@every_case
def test_jvp(name, path):
    layer, x, v, _ = build(name, path)
    y, tangent = jvp(layer, (x,), (v,))
    close(y, layer(x))
    close(tangent, directional(layer, x, v))


@every_case
def test_jvp_of_parameters(name, path):
    layer, x, _, _ = build(name, path)
    parameters = state(layer)
    directions = {key: torch.randn_like(value) for key, value in parameters.items()}
    _, tangent = jvp(lambda p: call(layer, p, x), (parameters,), (directions,))
    step = 1e-6
    ends = [call(layer, {k: p + s * directions[k] for k, p in parameters.items()}, x) for s in (step, -step)]
    close(tangent, (ends[0] - ends[1]) / (2 * step))


@every_case
def test_forward_ad(name, path):
    layer, x, v, _ = build(name, path)
    for needs_grad in (False, True):
        with forward_ad.dual_level(), torch.set_grad_enabled(needs_grad):
            _, tangent = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, v)))
        assert tangent is not None
        close(tangent, directional(layer, x, v))


@pytest.mark.parametrize("name", ["1x1", "linear", "bands"])
def test_linearize(name):
    layer, x, v, w = build(name)
    y, push = linearize(layer, x)
    close(y, layer(x))
    for direction in (v, w):
        close(push(direction), directional(layer, x, direction))


@every_case
def test_gradients(name, path):
    layer, x, v, _ = build(name, path)

    def loss(x):
        return weighted(layer(x))

    gradient = grad(loss)(x)
    close((gradient * v).sum(), directional(loss, x, v))
    value, pull = vjp(layer, x)
    close(value, layer(x))
    close((pull(torch.ones_like(value))[0] * v).sum(), directional(lambda x: layer(x).sum(), x, v))
    gradient, value = grad_and_value(loss)(x)
    close(value, loss(x))
    close((gradient * v).sum(), directional(loss, x, v))
    parameters = state(layer)
    found = grad(lambda p: weighted(call(layer, p, x)))(parameters)
    expected = torch.autograd.grad(loss(x), list(layer.parameters()))
    for (key, _), right in zip(layer.named_parameters(), expected, strict=True):
        assert (found[key] - right).abs().max() <= 1e-8 * (1 + right.abs().max()), key


@every_case
def test_jacobians(name, path):
    layer, x, _, _ = build(name, path)
    x = x[:1]
    expected = finite_jacobian(layer, x)
    close(jacrev(layer)(x), expected)
    close(jacfwd(layer)(x), expected)
    close(jacrev(layer, chunk_size=7)(x), expected)
    for vectorize in (False, True):
        close(functional.jacobian(layer, x, vectorize=vectorize), expected)
    close(functional.jacobian(layer, x, vectorize=True, strategy="forward-mode"), expected)


@twice
def test_hessians(name, path):
    layer, x, v, _ = build(name, path)
    x, v = x[:1], v[:1]

    def loss(x):
        return weighted(layer(x))

    expected = second_directional(loss, x, v)
    size = x.numel()
    hessians = {
        "hessian": hessian(loss)(x),
        "reverse over reverse": jacrev(jacrev(loss))(x),
        "autograd": functional.hessian(loss, x),
        "autograd, vectorized": functional.hessian(loss, x, vectorize=True),
        "autograd, forward over reverse": functional.hessian(
            loss, x, vectorize=True, outer_jacobian_strategy="forward-mode"
        ),
    }
    for found in hessians.values():
        matrix = found.detach().reshape(size, size)
        close(matrix, matrix.T, 1e-8)
        close(v.flatten() @ matrix @ v.flatten(), expected, 1e-4)


@twice
def test_hessian_vector_products(name, path):
    layer, x, v, _ = build(name, path)

    def loss(x):
        return weighted(layer(x))

    expected = directional(grad(loss), x, v)
    products = {
        "jvp of grad": jvp(grad(loss), (x,), (v,))[1],
        "vjp of grad": vjp(grad(loss), x)[1](v)[0],
        "functional.hvp": functional.hvp(loss, x, v)[1],
        "functional.vhp": functional.vhp(loss, x, v)[1],
    }
    if name in ("no branch", "bands"):  # others hold nn.LayerNorm, with which torch 2.14 gets this one wrong
        products["grad of jvp"] = grad(lambda x: jvp(loss, (x,), (v,))[1])(x)
    for found in products.values():
        close(found, expected, 1e-5)
    close(functional.jvp(layer, x, v)[1], directional(layer, x, v))
    close(functional.vjp(layer, x, torch.ones_like(layer(x)))[1], grad(lambda x: layer(x).sum())(x))


@twice
def test_gradients_of_gradients(name, path):
    """A gradient penalty: the gradient's norm is part of the loss."""
    layer, x, v, _ = build(name, path)

    def penalty(x, create_graph=False):
        x = x.detach().requires_grad_() if not create_graph else x
        (gradient,) = torch.autograd.grad(weighted(layer(x)), x, create_graph=create_graph)
        return gradient.square().sum()

    leaf = x.clone().requires_grad_()
    loss = penalty(leaf, create_graph=True)
    with_respect_to = [leaf, *layer.parameters()]
    found = torch.autograd.grad(loss, with_respect_to, allow_unused=True)
    step = 1e-5
    ends = [penalty(x + s * v).item() for s in (step, -step)]
    close((found[0] * v).sum(), (ends[0] - ends[1]) / (2 * step), 1e-5)
    for parameter, gradient in zip(with_respect_to[1:], found[1:], strict=True):
        if gradient is None:  # a bias, which no gradient of x depends on where the loss is linear
            continue
        direction = torch.randn_like(parameter)
        ends = []
        for s in (step, -step):
            with torch.no_grad():
                parameter.add_(direction, alpha=s)
            ends.append(penalty(x).item())
            with torch.no_grad():
                parameter.add_(direction, alpha=-s)
        expected = (ends[0] - ends[1]) / (2 * step)
        assert abs((gradient * direction).sum() - expected) < 1e-5 * (1 + abs(expected))


@twice
@pytest.mark.parametrize("train", [False, True])
def test_gradgradcheck(name, path, train):
    layer, x, _, _ = build(name, path)
    layer.train(train)
    assert torch.autograd.gradgradcheck(layer, x.requires_grad_(), fast_mode=True)


@every_case
def test_gradcheck_of_all_modes(name, path):
    layer, x, _, _ = build(name, path)
    assert torch.autograd.gradcheck(
        layer, x.requires_grad_(), fast_mode=True, check_forward_ad=True, check_batched_grad=True
    )


@every_case
def test_batched_gradients(name, path):
    layer, x, _, _ = build(name, path)
    x = x.requires_grad_()
    y = layer(x)
    directions = torch.randn(3, *y.shape, **F64)
    inputs = [x, *layer.parameters()]
    batched = torch.autograd.grad(y, inputs, directions, is_grads_batched=True, retain_graph=True)
    for place, direction in enumerate(directions):
        single = torch.autograd.grad(y, inputs, direction, retain_graph=True)
        for all_of_them, one in zip(batched, single, strict=True):
            assert (all_of_them[place] - one).abs().max() <= 1e-9 * (1 + one.abs().max())


@every_case
@pytest.mark.parametrize("in_dim", [0, 1])
def test_vmap_over_inputs(name, path, in_dim):
    layer, x, v, w = build(name, path)
    batches = torch.stack([x, v, w])
    for needs_grad in (False, True):
        with torch.set_grad_enabled(needs_grad):
            found = vmap(layer, in_dims=in_dim, out_dims=in_dim)(batches.movedim(0, in_dim))
            close(found.movedim(in_dim, 0), torch.stack([layer(batch) for batch in batches]))
    close(vmap(layer, chunk_size=2)(batches), torch.stack([layer(batch) for batch in batches]))


@every_case
@pytest.mark.parametrize("train", [False, True])
def test_vmap_over_models(name, path, train):
    """An ensemble, as torch's own tutorial has it; ``train`` with frozen statistics."""
    layers = [build(name, path, seed)[0] for seed in range(3)]
    _, x, v, w = build(name, path)
    parameters, buffers = stack_module_state(layers)
    base = copy.deepcopy(layers[0]).to("meta").train(train)
    for norm in base.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.eval()

    def run(p, b, x):
        return functional_call(base, (p, b), (x,))

    for needs_grad in (False, True):
        with torch.set_grad_enabled(needs_grad):
            expected = torch.stack([layer(x) for layer in layers])
            close(vmap(run, in_dims=(0, 0, None))(parameters, buffers, x), expected)
            expected = torch.stack([layer(batch) for layer, batch in zip(layers, (x, v, w), strict=True)])
            close(vmap(run)(parameters, buffers, torch.stack([x, v, w])), expected)


@every_case
def test_per_sample_gradients(name, path):
    layer, x, _, _ = build(name, path)
    parameters = state(layer)

    def loss(p, image):
        return weighted(call(layer, p, image[None]))

    found = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for place, image in enumerate(x):
        expected = torch.autograd.grad(weighted(layer(image[None])), list(layer.parameters()))
        for key, right in zip(parameters, expected, strict=True):
            assert (found[key][place] - right).abs().max() <= 1e-9 * (1 + right.abs().max()), key


@every_case
def test_ensembles_of_gradients(name, path):
    layers = [build(name, path, seed)[0] for seed in range(3)]
    _, x, _, _ = build(name, path)
    parameters, buffers = stack_module_state(layers)
    base = copy.deepcopy(layers[0])

    def loss(p, b):
        return weighted(functional_call(base, (p, b), (x,)))

    found = vmap(grad(loss))({key: value.detach() for key, value in parameters.items()}, buffers)
    for place, layer in enumerate(layers):
        expected = torch.autograd.grad(weighted(layer(x)), list(layer.parameters()))
        for key, right in zip(parameters, expected, strict=True):
            assert (found[key][place] - right).abs().max() <= 1e-9 * (1 + right.abs().max()), key


@pytest.mark.parametrize("name", LAYERS)
def test_the_forced_rebuilding_path_is_right_twice_or_says_which_path_is(name):
    layer, x, v, _ = build(name, "rebuild")

    def loss(x):
        return weighted(layer(x))

    expected = directional(grad(loss), x, v)
    leaf = x.clone().requires_grad_()

    def gradient_of_gradient():
        (gradient,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
        return torch.autograd.grad(gradient, leaf, v)[0]

    for second in (gradient_of_gradient, lambda: jvp(grad(loss), (x,), (v,))[1]):
        try:
            found = second()
        except RuntimeError as error:
            assert "set_path" in str(error)  # noqa: PT017
        else:
            close(found, expected)
