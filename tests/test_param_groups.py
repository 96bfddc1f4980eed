"""`fdconv_zoo.param_groups` in the training loops of others, and in the commands."""

import argparse
import copy

import pytest
import timm
import torch
import torch.distributed as dist
import yaml
from examples import run_examples
from run_scripts import TINY, load_script
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import nn

import fdconv_zoo
from fdconv_zoo import FDConv2d, add_lora, convert_model, param_groups
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.training.flags import add_optimization_flags
from fdconv_zoo.training.optimizer import build_optimizer

# Out channels, in channels, kernel: the factor sqrt(R * C / 2) / (min(O, I) // 2), worked out by hand.
SPECTRA = {(64, 64, 3): 4.242641, (128, 64, 3): 6.0, (64, 256, 1): 2.828427}


@pytest.fixture(scope="module")
def model():
    return timm.create_model("resnet10s_fdconv")


def settings(model, groups, key="lr"):
    """Name -> value of its group's setting; each parameter is in one group, once."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = [(names[parameter], group.get(key)) for group in groups for parameter in group["params"]]
    assert len(found) == len(dict(found))
    return dict(found)


@pytest.mark.parametrize(("shape", "factor"), SPECTRA.items())
def test_rates_and_decays_of_one_layer(shape, factor):
    out_channels, in_channels, kernel = shape
    layer = FDConv2d(in_channels, out_channels, kernel)
    for optimizer, power in (("adamw", 1), ("an_unknown_one", 1), ("sgd", 2), ("Lookahead_SGD", 2)):
        groups = param_groups(layer, 0.1, 0.5, optimizer=optimizer)
        lr, decay = settings(layer, groups), settings(layer, groups, "weight_decay")
        assert lr["fdw.spectrum"] == pytest.approx(0.1 * factor**power, rel=1e-4)
        assert decay["fdw.spectrum"] == pytest.approx(0.5 / factor**power, rel=1e-4)
        hidden = max(in_channels // 16, 16)
        heads = {
            **{f"ksm.global_branch.{name}.weight": hidden for name in ("channel", "filter", "kernel")},
            "ksm.local_branch.conv.weight": {64: 5, 256: 5}[in_channels],
        }
        if kernel == 3:
            heads |= {"ksm.global_branch.spatial.weight": hidden, "fbm.attention.weight": 9 * in_channels}
        for name in lr.keys() - {"fdw.spectrum"}:
            rate = 2 / heads[name] if name in heads else 1
            assert lr[name] == pytest.approx(0.1 * rate), name
            decays = not name.endswith("bias") and "norm" not in name and "act" not in name
            assert decay[name] == pytest.approx(0.5 / rate if decays else 0), name


@pytest.mark.parametrize("layer_decay", [None, 0.7])
def test_a_plain_model_is_grouped_as_timm_does(layer_decay):
    plain = timm.create_model("vit_tiny_patch16_224", depth=2)
    ours = param_groups(plain, None, 0.1, layer_decay=layer_decay)
    listed = plain.no_weight_decay()
    if layer_decay:
        theirs = param_groups_layer_decay(plain, 0.1, layer_decay=0.7, no_weight_decay_list=listed)
    else:
        theirs = param_groups_weight_decay(plain, 0.1, no_weight_decay_list=listed)
    for key in ("lr_scale", "weight_decay"):
        assert settings(plain, ours, key) == settings(plain, theirs, key)
    assert len(ours) == len(theirs)


def test_settings_add_up(model):
    """Layer decay, an own list without decay, frozen and tied parameters, with the factors of one layer."""
    model = copy.deepcopy(model)
    first, second = model.layer1[0].conv2.fdw, model.layer1[0].conv1.fdw
    second.spectrum = first.spectrum  # of one shape
    model.conv1.requires_grad_(False)
    groups = param_groups(model, 0.1, 0.5, layer_decay=0.7, no_weight_decay=["layer2.*.fdw.spectrum", "fc.weight"])
    lr, decay = settings(model, groups), settings(model, groups, "weight_decay")
    assert lr.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    timms = param_groups_layer_decay(model, 0.5, layer_decay=0.7)
    scales, decays = settings(model, timms, "lr_scale"), settings(model, timms, "weight_decay")
    alone = {}
    for name, module in model.named_modules():
        if isinstance(module, FDConv2d):
            for key, rate in settings(module, param_groups(module, 1.0)).items():
                alone.setdefault(f"{name}.{key}", rate)
    for name, rate in lr.items():
        factor = alone.get(name, 1.0)
        assert rate == pytest.approx(0.1 * scales[name] * factor), name
        listed = name == "fc.weight" or (name.startswith("layer2.") and name.endswith("spectrum"))
        assert decay[name] == pytest.approx(0 if listed else decays[name] / factor), name
    assert min(scales.values()) < 0.5


def test_a_converted_model_learns_at_the_rates_of_its_layers():
    model = convert_model(timm.create_model("test_resnet"), include="layer1.*")
    lr = settings(model, param_groups(model, 0.1))
    layers = {name: module for name, module in model.named_modules() if isinstance(module, FDConv2d)}
    assert layers
    for name, layer in layers.items():
        rows, cols = (layer.out_channels * layer.kernel_size[0], layer.in_channels * layer.kernel_size[1])
        assert lr[f"{name}.fdw.spectrum"] == pytest.approx(0.1 * (rows * cols / 2) ** 0.5 / layer.fdw.scale)
    assert lr["layer2.0.conv1.weight"] == 0.1


def test_low_rank_updates_are_of_the_kernel_itself(model):
    model = copy.deepcopy(model)
    add_lora(model)
    lr = settings(model, param_groups(model, 0.1))
    updates = {name: rate for name, rate in lr.items() if ".parametrizations." in name}
    assert set(updates.values()) == {0.1}
    assert all(name.endswith(("up", "down")) for name in updates)
    layer = model.layer1[0].conv1.fdw
    layer.parametrizations.spectrum.original.requires_grad_(True)  # trained beside its update
    lr = settings(model, param_groups(model, 0.1))
    name = "layer1.0.conv1.fdw.parametrizations.spectrum.original"
    assert lr[name] == pytest.approx(0.1 * 4.2426, rel=1e-4)


def test_wrapped_models_are_seen_through(model, tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = [torch.compile(model), nn.parallel.DistributedDataParallel(model), nn.DataParallel(model)]
        wrapped.append(torch.compile(wrapped[1]))
    finally:
        dist.destroy_process_group()
    options = dict(layer_decay=0.7, no_weight_decay=["layer1.*"])
    expected = param_groups(model, 0.1, 0.5, **options)
    for wrapper in wrapped:
        groups = param_groups(wrapper, 0.1, 0.5, **options)
        for key in ("lr", "weight_decay"):
            assert settings(model, groups, key) == settings(model, expected, key)


def test_under_muon_heads_are_left_to_adam(model):
    marked = settings(model, param_groups(model, 0.1, optimizer="muon"), "use_fallback")
    heads = ("channel.weight", "filter.weight", "kernel.weight", "spatial.weight", "local_branch.conv.weight")
    for name, fallback in marked.items():
        assert bool(fallback) is name.endswith((*heads, "attention.weight")), name


def rates(model, optimizer):
    return settings(model, optimizer.param_groups)


@pytest.mark.parametrize("layer_decay", [None, 0.7])
def test_under_timms_schedule_all_rates_keep_their_proportion(model, layer_decay):
    """In warm-up and at the end, too, which timm gives as rates, not as factors."""
    factors = settings(model, param_groups(model, 1.0, 0.05, layer_decay=layer_decay))
    optimizer = create_optimizer_v2(
        model, "adamw", lr=0.1, param_group_fn=lambda m: param_groups(m, weight_decay=0.05, layer_decay=layer_decay)
    )
    schedule = CosineLRScheduler(optimizer, 20, lr_min=1e-3, warmup_t=5, warmup_lr_init=1e-2, t_in_epochs=False)
    seen = []
    for update in range(20):
        found = rates(model, optimizer)
        seen.append(found["fc.bias"])
        for name, rate in found.items():
            assert rate == pytest.approx(seen[-1] * factors[name] / factors["fc.bias"], rel=1e-9), name
        optimizer.step()
        schedule.step_update(update + 1)
    assert seen[0] == pytest.approx(1e-2)
    assert max(seen) < 0.1 + 1e-9
    assert seen[-1] < 0.01


def test_under_torchs_schedules_all_rates_keep_their_proportion(model):
    factors = settings(model, param_groups(model, 1.0))
    optimizer = torch.optim.AdamW(param_groups(model, 0.1))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: min(1.0, (update + 1) / 5))
    for update in range(8):
        for name, rate in rates(model, optimizer).items():
            assert rate == pytest.approx(0.1 * min(1.0, (update + 1) / 5) * factors[name], rel=1e-9), name
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ([[]], {}, TypeError, "model is a list"),
        ([nn.Linear(1, 1)], {"optimizer": torch.optim.SGD}, TypeError, "optimizer is .*SGD.*: give its name"),
        ([nn.Linear(1, 1), -0.1], {}, ValueError, "lr is -0.1"),
        ([nn.Linear(1, 1), float("nan")], {}, ValueError, "lr is nan"),
        ([nn.Linear(1, 1), 0.1, -1], {}, ValueError, "weight_decay is -1"),
        ([nn.Linear(1, 1)], {"layer_decay": float("inf")}, ValueError, "layer_decay is inf"),
        ([nn.Linear(1, 1)], {"spectrum_lr": "Auto"}, ValueError, "spectrum_lr is 'Auto'"),
        ([nn.Linear(1, 1)], {"modulator_lr": -1}, ValueError, "modulator_lr is -1"),
    ],
)
def test_what_cannot_be_is_named(arguments, options, error, message):
    with pytest.raises(error, match=message):
        param_groups(*arguments, **options)


def test_the_commands_take_numbers_and_auto(model):
    parser = argparse.ArgumentParser()
    add_optimization_flags(parser)
    defaults = parser.parse_args([])
    assert (defaults.spectrum_lr, defaults.modulator_lr) == ("auto", "auto")
    flags = ["--opt", "sgd", "--lr", "0.1"]
    for factors, given in (
        ([], {}),
        (["--spectrum-lr", "1", "--modulator-lr", "1"], dict(spectrum_lr=1, modulator_lr=1)),
    ):
        args = parser.parse_args([*flags, *factors])
        optimizer = build_optimizer(args, model)
        CosineLRScheduler(optimizer, 20)
        expected = param_groups(model, 0.1, args.weight_decay, optimizer="sgd", **given)
        assert rates(model, optimizer) == pytest.approx(settings(model, expected))


def test_groups_of_numbers_stay_where_runs_that_are_continued_look_for_them(model):
    """A checkpoint has the state of parameters by place: plain ones, then spectra, then modulators."""
    parser = argparse.ArgumentParser()
    add_optimization_flags(parser)
    optimizer = build_optimizer(parser.parse_args(["--spectrum-lr", "4", "--modulator-lr", "0.1"]), model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    places = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
    spectra = [name for name in names.values() if name.endswith("spectrum")]
    modulators = [name for name in names.values() if ".ksm." in name or ".fbm." in name]
    one_dimensional = {name for parameter, name in names.items() if parameter.ndim == 1}
    others = [name for name in names.values() if name not in {*spectra, *modulators}]
    assert places == [
        [name for name in others if name in one_dimensional],
        [name for name in others if name not in one_dimensional],
        spectra,
        [name for name in modulators if name in one_dimensional],
        [name for name in modulators if name not in one_dimensional],
    ]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0, 0.05, 0.05, 0, 0.05]
    assert [group.get("lr_scale") for group in optimizer.param_groups] == [None, None, 4, 0.1, 0.1]


@pytest.mark.parametrize("flag", ["--spectrum-lr", "--modulator-lr"])
@pytest.mark.parametrize(
    ("value", "message"),
    [("-1", "-1.0: must be at least 0"), ("nan", "nan: must be at least 0"), ("often", "neither a number nor auto")],
)
def test_other_factors_are_refused_before_anything_is_touched(tmp_path, flag, value, message):
    with pytest.raises(ConfigError, match=f"{flag}.*{message}"):
        load_script("train").main([*TINY, flag, value, "--output", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_run_records_what_was_given(tmp_path):
    flags = ["--spectrum-lr", "auto", "--modulator-lr", "0.1", "--epochs", "1", "--updates-per-epoch", "1"]
    load_script("train").main([*TINY, *flags, "--output", str(tmp_path)])
    recorded = yaml.safe_load((tmp_path / "train_config.yaml").read_text())
    assert (recorded["spectrum_lr"], recorded["modulator_lr"]) == ("auto", 0.1)


@pytest.mark.parametrize(
    ("heading", "package"),
    [("Plain torch", "torch"), ("timm", "timm"), ("transformers", "transformers"), ("Lightning", "lightning")],
)
def test_examples(heading, package, tmp_path):
    library = pytest.importorskip(package)
    if heading == "transformers":
        config = library.TimmWrapperConfig(architecture="resnet10s_fdconv", num_labels=2)
        model, prefix = library.TimmWrapperForImageClassification(config), "timm_model."
        data = [{"pixel_values": torch.randn(3, 32, 32), "labels": index % 2} for index in range(8)]
    else:
        model, prefix = timm.create_model("resnet10s_fdconv", num_classes=2), ""
        data = [(torch.randn(3, 32, 32), index % 2) for index in range(8)]
    before = copy.deepcopy(model.state_dict())
    run_examples(
        "learning_rates.md", heading, model=model, data=data, folder=str(tmp_path), torch=torch, fdconv_zoo=fdconv_zoo
    )
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    expected = {"layer1.0.conv1.fdw.spectrum", "layer1.0.conv1.ksm.global_branch.filter.weight", "fc.weight"}
    assert {prefix + name for name in expected} <= moved
