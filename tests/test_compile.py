"""Other forms of the models: compiled, exported, copied, in other types and memory formats."""

import copy
import pickle

import pytest
import torch
from conftest import needs_cpp_compiler
from contract import FAMILIES, assert_same, each_family, every_model, example, images, small, traced_example
from torch.export import Dim, export

IS_TORCH_26 = torch.__version__.startswith("2.6.")


@pytest.fixture
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@each_family
@pytest.mark.usefixtures("_fresh_compiler")
def test_compiles_to_one_graph(name):
    model, x = copy.deepcopy(traced_example(name)), images()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    results = []
    for run in (compiled, model):
        model.zero_grad()
        y = run(x)
        y.square().sum().backward()
        results.append((y, [parameter.grad for parameter in model.parameters()]))
    assert_same(results[0][0], results[1][0])
    for actual, expected in zip(results[0][1], results[1][1], strict=True):
        assert_same(actual, expected, 1e-3)


@pytest.mark.skipif(IS_TORCH_26, reason="torch 2.6 takes minutes over it")
@needs_cpp_compiler
@pytest.mark.usefixtures("_fresh_compiler")
def test_compiles_with_the_default_backend():
    model, x = example("resnet10s_fdconv"), images(size=(32, 32))
    with torch.no_grad():
        assert_same(torch.compile(model, fullgraph=True)(x), model(x))


@each_family
def test_exports(name):
    model, x = traced_example(name), images()
    program = export(model, (images(),), strict=False)
    with torch.no_grad():
        assert_same(program.module()(x), model(x))


@pytest.mark.parametrize("name", [FAMILIES["resnet"], FAMILIES["convnext"]], ids=["resnet", "convnext"])
@pytest.mark.skipif(IS_TORCH_26, reason="torch 2.6 cannot trace irfft over an axis of unknown size")
def test_exports_of_free_batch_and_size(name):
    model = traced_example(name)
    free = ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},)
    program = export(model, (images(2, size=(64, 96)),), dynamic_shapes=free, strict=False).module()
    with torch.no_grad():
        for batch, size in ((3, (96, 64)), (1, (128, 160))):
            x = images(batch, size=size)
            assert_same(program(x), model(x))


@pytest.mark.skipif(IS_TORCH_26, reason="torch 2.6 cannot trace irfft over an axis of unknown size")
def test_swin_exports_of_free_batch():
    model = traced_example(FAMILIES["swin"])
    program = export(model, (images(2),), dynamic_shapes=({0: Dim.AUTO},), strict=False).module()
    with torch.no_grad():
        x = images(3)
        assert_same(program(x), model(x))


@every_model
def test_copies_and_checkpoints_hold_everything(name):
    model, x = example(name), images()
    again = small(name)
    again.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        expected = model(x)
        for twin in (again.eval(), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(twin(x), expected)


@every_model
def test_types_and_memory_formats(name):
    model, x = example(name), images()
    with torch.no_grad():
        expected = model(x)
        double = copy.deepcopy(model).to(torch.float64)(x.double())
        assert double.dtype == torch.float64
        assert_same(double, expected.double())
        channels_last = copy.deepcopy(model).to(memory_format=torch.channels_last)
        assert_same(channels_last(x.contiguous(memory_format=torch.channels_last)), expected)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(x)
        assert half.dtype == torch.bfloat16
        assert_same(half, expected, 0.2)


@each_family
def test_autocast_trains(name):
    model = copy.deepcopy(example(name)).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(images()).float().square().mean()
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())
