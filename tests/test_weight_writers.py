"""Whatever changes a layer's weights, the next forward sees it: no stale kernels.

Each writer changes the weights of a layer that has run in eval mode. The oracle is a new layer with the same weights,
which has never run. Layers without kernel attention stand beside those with it: their kernel does not depend on the
image, so it could be kept between calls.
"""

import copy
import multiprocessing
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from conftest import randomize, relative_error
from safetensors.torch import load_model, save_model
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fdconv_zoo import FDConv2d, FDLinear, set_path

OPTIONS = {
    "kernel attention": {},
    "no global branch": dict(ksm_global=False),
    "one kernel": dict(num_kernels=1),
    "no branch": dict(ksm_global=False, ksm_local=False),
}
CASES = [(kind, name, path) for kind in ("conv", "linear") for name in OPTIONS for path in (None, "plain")]
INPUTS = {
    "conv": torch.linspace(-1, 1, 2 * 8 * 5 * 6).view(2, 8, 5, 6),
    "linear": torch.linspace(-1, 1, 80).view(2, 5, 8),
}


def build(kind, name, path):
    options = {"num_kernels": 4} | OPTIONS[name]
    layer = FDConv2d(8, 6, 3, padding=1, **options) if kind == "conv" else FDLinear(8, 6, **options)
    set_path(layer, path)
    return randomize(layer).eval()


def infer(layer, case):
    with torch.no_grad():
        return layer(INPUTS[case[0]])


def error(layer, case):
    """The relative error of a layer's output, beside a new layer with copies of its weights."""
    oracle = build(*case)
    oracle.load_state_dict({name: value.detach().clone() for name, value in layer.state_dict().items()})
    return relative_error(infer(layer, case), infer(oracle, case))


def stale_cases(write, cases=CASES):
    """The cases where a layer does not see what ``write`` did, with the error of the output.

    ``write`` may return another layer, whose weights it has changed.
    """
    stale = {}
    for case in cases:
        layer = build(*case)
        before = infer(layer, case)
        changed = write(layer, case) or layer
        if (found := error(changed, case)) > 1e-5:
            stale[case] = f"{found:.0%}"
        assert relative_error(infer(changed, case), before) > 1e-3 or found > 1e-5, f"{case}: nothing was written"
    return stale


def scaled(layer):
    return {name: value * 1.5 if value.is_floating_point() else value for name, value in layer.state_dict().items()}


def through_data(layer, case):
    for parameter in layer.parameters():
        parameter.data.mul_(1.5)


def new_data(layer, case):
    for parameter in layer.parameters():
        parameter.data = parameter.data * 1.5


def old_address(layer, case):
    """New storage, which may come to lie where the old one was."""
    for parameter in layer.parameters():
        shape, value = parameter.shape, (parameter.detach() * 1.5).tolist()
        parameter.data = torch.empty(0)
        parameter.data = torch.tensor(value).view(shape)


def set_storage(layer, case):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.set_(parameter * 1.5)


def detached(layer, case):
    for parameter in layer.parameters():
        parameter.detach().mul_(1.5)


def numpy_view(layer, case):
    for parameter in layer.parameters():
        array = parameter.detach().numpy()
        array *= 1.5


def dlpack_view(layer, case):
    for parameter in layer.parameters():
        torch.from_dlpack(parameter.detach()).mul_(1.5)


def under_inference_mode(layer, case):
    with torch.inference_mode():
        for parameter in layer.parameters():
            parameter.data.mul_(1.5)


def foreach(layer, case):
    with torch.no_grad():
        torch._foreach_mul_(list(layer.parameters()), 1.5)


def foreach_of_data(layer, case):
    torch._foreach_mul_([parameter.data for parameter in layer.parameters()], 1.5)


def foreach_copy(layer, case):
    parameters = [parameter.data for parameter in layer.parameters()]
    torch._foreach_copy_(parameters, [parameter * 1.5 for parameter in parameters])


def swap_tensors(layer, case):
    for parameter in layer.parameters():
        torch.utils.swap_tensors(parameter, nn.Parameter(parameter.detach() * 1.5))


def from_vector(layer, case):
    vector = nn.utils.parameters_to_vector(layer.parameters()).detach()
    nn.utils.vector_to_parameters(vector * 1.5, layer.parameters())


def new_parameters(layer, case):
    for module in layer.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach() * 1.5))


def other_dtype_and_back(layer, case):
    layer.double()
    through_data(layer, case)
    layer.float()


def load(layer, case):
    layer.load_state_dict(scaled(layer))


def load_assign(layer, case):
    layer.load_state_dict(scaled(layer), assign=True)


def written_after_assign(layer, case):
    """The state dict's tensors are the layer's own from then on."""
    state_dict = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.load_state_dict(state_dict, assign=True)
    infer(layer, case)
    for value in state_dict.values():
        if value.is_floating_point():
            value.mul_(1.5)


def through_state_dict(layer, case):
    for value in layer.state_dict().values():
        if value.is_floating_point():
            value.mul_(1.5)


def after_copy(layer, case):
    twin = copy.deepcopy(layer)
    infer(twin, case)
    through_data(twin, case)
    return twin


def average(layer, case, update, module):
    """Run an average's layer, move the original, update, and return the average's layer."""
    infer(module, case)
    through_data(layer, case)
    update(layer)
    return module


def swa(layer, case):
    averaged = AveragedModel(layer)
    averaged.update_parameters(layer)
    return average(layer, case, averaged.update_parameters, averaged.module)


def ema(layer, case):
    averaged = AveragedModel(layer, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    averaged.update_parameters(layer)
    return average(layer, case, averaged.update_parameters, averaged.module)


def timm_ema_v2(layer, case):
    averaged = ModelEmaV2(layer, decay=0.5)
    return average(layer, case, averaged.update, averaged.module)


def timm_ema_v3(layer, case):
    averaged = ModelEmaV3(layer, decay=0.5)
    return average(layer, case, averaged.update, averaged.module)


def ema_by_data(layer, case):
    """As mean-teacher training is often written."""
    teacher = copy.deepcopy(layer)

    def update(student):
        for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
            old.data.mul_(0.5).add_(new.data, alpha=0.5)

    return average(layer, case, update, teacher)


WRITERS = [
    through_data, new_data, old_address, set_storage, detached, numpy_view, dlpack_view, under_inference_mode, foreach,
    foreach_of_data, foreach_copy, swap_tensors, from_vector, new_parameters, other_dtype_and_back, load, load_assign,
    written_after_assign, through_state_dict, after_copy, swa, ema, timm_ema_v2, timm_ema_v3, ema_by_data,
]  # fmt: skip


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_forward_sees_what_was_written(write):
    assert not stale_cases(write)


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.5, momentum=0.9, fused=True),
        lambda parameters: torch.optim.SGD(parameters, lr=0.5, foreach=True),
        lambda parameters: torch.optim.Adam(parameters, lr=0.5, fused=True),
        lambda parameters: torch.optim.AdamW(parameters, lr=0.5, fused=True),
        lambda parameters: torch.optim.AdamW(parameters, lr=0.5, foreach=True),
        lambda parameters: torch.optim.Adagrad(parameters, lr=0.5, fused=True),
    ],
    ids=["SGD fused", "SGD foreach", "Adam fused", "AdamW fused", "AdamW foreach", "Adagrad fused"],
)
def test_forward_sees_an_optimizer_step(make):
    def step(layer, case):
        optimizer = make(layer.parameters())
        for _ in range(2):
            for parameter in layer.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            infer(layer, case)

    assert not stale_cases(step)


def test_forward_sees_safetensors(tmp_path):
    def write(layer, case):
        other = build(*case)
        other.load_state_dict(scaled(layer))
        save_model(other, str(tmp_path / "layer.safetensors"))
        load_model(layer, str(tmp_path / "layer.safetensors"))

    assert not stale_cases(write)


def test_functional_call_uses_the_weights_it_is_given():
    for case in CASES:
        layer = build(*case)
        before = infer(layer, case)
        other = build(*case)
        other.load_state_dict(scaled(layer))
        with torch.no_grad():
            actual = functional_call(layer, scaled(layer), (INPUTS[case[0]],))
        assert relative_error(actual, infer(other, case)) < 1e-5, case
        assert relative_error(infer(layer, case), before) < 1e-6, case


def scale_shared(layers):
    torch.set_num_threads(1)
    with torch.no_grad():
        for layer in layers:
            for parameter in layer.parameters():
                parameter.mul_(1.5)


def test_forward_sees_another_process_write_to_shared_memory():
    layers = {case: build(*case).share_memory() for case in CASES}
    before = {case: layer.fdw.spectrum.detach().clone() for case, layer in layers.items()}
    for case, layer in layers.items():
        infer(layer, case)
    process = multiprocessing.get_context("fork").Process(target=scale_shared, args=(list(layers.values()),))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert all(torch.equal(layer.fdw.spectrum, before[case] * 1.5) for case, layer in layers.items())
    assert not {case: found for case, layer in layers.items() if (found := error(layer, case)) > 1e-5}


def broadcast_and_reduce(rank, folder):
    """Two processes start from unlike weights; each checks its own layers after each collective."""
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)

    def broadcast(layer, case):
        for parameter in layer.parameters():
            dist.broadcast(parameter.data, src=0)
        infer(layer, case)  # rank 0 has sent its own weights: only what it is sent later is new
        for parameter in layer.parameters():
            parameter.data.add_(rank)
            dist.broadcast(parameter.data, src=1)

    def all_reduce(layer, case):
        with torch.no_grad():
            for parameter in layer.parameters():
                dist.all_reduce(parameter)

    found = {write.__name__: stale_cases(write) for write in (broadcast, all_reduce)}
    torch.save({name: stale for name, stale in found.items() if stale}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_forward_sees_collectives(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=broadcast_and_reduce, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)] == [{}, {}]


@pytest.mark.parametrize("no_grad", [torch.no_grad, torch.inference_mode])
def test_what_a_layer_returns_is_not_its_own(no_grad):
    """Kernels that were handed out may be normalized for a picture, say."""
    wrong = {}
    for case in CASES:
        layer = build(*case)
        before = infer(layer, case)
        with no_grad():
            for kernel in (layer.fdw(), layer.assemble(torch.ones(2, 8)), layer.fdw()):
                kernel.div_(kernel.norm())
        if (found := relative_error(infer(layer, case), before)) > 1e-6:
            wrong[case] = f"{found:.0%}"
    assert not wrong


@pytest.mark.parametrize("name", OPTIONS)
def test_another_thread_may_call_eval_at_any_time(name):
    """Between any two lines of a forward, where a thread may be interrupted."""
    case = ("conv", name, None)
    layer = build(*case)
    expected = infer(layer, case)

    def interrupt(frame, event, argument):
        if "fdconv_zoo" not in frame.f_code.co_filename:
            return None
        if event == "line":
            layer.eval()
        return interrupt

    sys.settrace(interrupt)
    try:
        actual = infer(layer, case)
    finally:
        sys.settrace(None)
    assert relative_error(actual, expected) < 1e-6


def test_threads_infer_while_another_calls_eval():
    case = ("conv", "no branch", None)
    layer = build(*case)
    expected = infer(layer, case)
    with ThreadPoolExecutor(3) as pool:
        pool.submit(lambda: [layer.eval() for _ in range(300)])
        loops = [pool.submit(lambda: [infer(layer, case) for _ in range(100)]) for _ in range(2)]
        results = [result for loop in loops for result in loop.result()]
    assert max(relative_error(result, expected) for result in results) < 1e-6


def test_forward_sees_a_writer_in_another_thread():
    """A writer that works between two forwards, in its own thread, as a server's reload does."""

    def write(layer, case):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(through_data, layer, case).result()

    assert not stale_cases(write)
