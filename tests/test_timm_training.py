"""What timm's training tools expect of the models: gradients, checkpointing, drop rates, parameter groups, wrappers."""

import copy

import pytest
import timm
import torch
from conftest import relative_error
from contract import assert_same, each_family, every_model, example, family, images, plain_example, plain_twin, small
from timm.models._manipulate import group_with_matcher
from timm.optim import create_optimizer_v2
from torch import nn

from fdconv_zoo import FDConv2d, FDLinear


@every_model
def test_all_parameters_receive_gradients(name):
    model = small(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = images()
    for _ in range(2):  # the heads of KSM start at zero and hold back the layers behind them for one step
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert not [name for name, grad in grads.items() if grad is None]
    assert all(torch.isfinite(grad).all() for grad in grads.values())


@every_model
def test_all_parameters_matter(name):
    model = copy.deepcopy(example(name))
    model(images()).square().sum().backward()
    idle = [name for name, parameter in model.named_parameters() if not parameter.grad.any()]
    assert not idle


@every_model
def test_grad_checkpointing_computes_the_same_gradients(name):
    model, x = copy.deepcopy(example(name)), images()
    layer = next(module for module in model.modules() if isinstance(module, FDConv2d | FDLinear))
    calls, grads = [], []
    layer.register_forward_hook(lambda *_: calls.append(1))
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        grads.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert len(calls) == 3  # with checkpointing once more, in backward
    for key, grad in grads[0].items():
        assert relative_error(grads[1][key], grad) < 1e-4, key


@every_model
def test_drop_rates(name):
    model, twin = small(name, drop_path_rate=0.5), plain_twin(name, drop_path_rate=0.5)
    rates = [[m.drop_prob for m in net.modules() if isinstance(m, timm.layers.DropPath)] for net in (model, twin)]
    assert rates[0] == rates[1]
    assert max(rates[0]) == pytest.approx(0.5)

    x = images()
    for args in (dict(drop_rate=0.5, drop_path_rate=0.0), dict(drop_rate=0.0, drop_path_rate=0.5)):
        model = small(name, **args)
        model.load_state_dict(example(name).state_dict())
        with torch.no_grad():
            assert_same(model.eval()(x), example(name)(x))
            for module in model.modules():  # what is left to chance is the dropping alone
                if not isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.training = True
            assert relative_error(model(x), model(x)) > 0.01


def layer_ids(model, coarse=False):
    """Parameter name -> its group's number, the stem's 0."""
    matcher = model.group_matcher(coarse=coarse)
    return group_with_matcher(model.named_parameters(), matcher, return_values=False, reverse=True)


@every_model
@pytest.mark.parametrize("coarse", [False, True], ids=["fine", "coarse"])
def test_groups_are_the_plain_twins(name, coarse):
    model = small(name)
    ids, plain_ids = layer_ids(model, coarse), layer_ids(plain_twin(name), coarse)
    assert set(ids) == {name for name, _ in model.named_parameters()}
    # FDConv's own parameters go where the weight of the plain layer goes.
    for key, group in ids.items():
        plain_key = key
        for part in (".fdw.", ".ksm.", ".fbm."):
            plain_key = plain_key.partition(part)[0] + ".weight" if part in key else plain_key
        assert group == plain_ids[plain_key], key
    cfg = model.pretrained_cfg
    assert ids[f"{cfg['first_conv']}.weight"] == 0
    assert ids[f"{cfg['classifier']}.weight"] == max(ids.values())
    assert sorted(set(ids.values())) == list(range(max(ids.values()) + 1))


@every_model
def test_layer_decay(name):
    model = small(name)
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.5)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    names = {parameter: name for name, parameter in model.named_parameters()}
    never_decay = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    ids = layer_ids(model)
    scales = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            key = names[parameter]
            assert group["weight_decay"] == (0.05 if parameter.ndim > 1 and key not in never_decay else 0)
            assert scales.setdefault(ids[key], group["lr_scale"]) == group["lr_scale"]
    assert list(dict(sorted(scales.items())).values()) == sorted(set(scales.values()))  # ever larger with depth
    assert max(scales.values()) == 1


@every_model
def test_parameters_without_weight_decay_exist(name):
    models = small(name), plain_twin(name)
    ours, plain = (model.no_weight_decay() if hasattr(model, "no_weight_decay") else set() for model in models)
    assert ours == plain
    names = {name for name, _ in models[0].named_parameters()}
    if family(name) == "vit":  # timm names the tokens of all variants
        assert {"cls_token"} < ours & names
    else:
        assert ours <= names
        assert bool(ours) is (family(name) == "swin")


@each_family
def test_averaged_models_follow(name):
    model = copy.deepcopy(example(name))
    ema = timm.utils.ModelEmaV3(model, decay=0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    ema.update(model)
    x = images()
    expected = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter.mul_(1.05 / 1.1)
        assert_same(ema.module.eval()(x), expected(x), 1e-4)


def test_batch_norm_can_be_frozen():
    model, x = copy.deepcopy(example("resnet18_fdconv")), images()
    expected = model(x)
    timm.layers.freeze_batch_norm_2d(model)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    assert_same(model(x), expected)


@each_family
def test_plain_parameters_keep_their_names(name):
    """Tools that pick layers by name find in ours what they find in the plain twin."""
    ours = {key for key, _ in example(name).named_parameters()}
    plain = {key for key, _ in plain_example(name).named_parameters()}
    dynamic = {key.partition(".fdw.")[0] + ".weight" for key in ours if ".fdw." in key}
    assert plain - dynamic <= ours
    assert dynamic <= plain
