import json
import math
import re
import shutil

import numpy as np
import pytest
import timm
import torch
import yaml
from conftest import randomize
from examples import run_examples
from run_scripts import TINY, load_script, run_on_the_cpu
from safetensors.torch import load_file, save_file
from torch import nn

from fdconv_zoo import FDConv2d, FDLinear, add_lora
from fdconv_zoo.analysis import modulator_statistics
from fdconv_zoo.analysis.diagnosis import CHECKS, diagnose
from fdconv_zoo.analysis.findings import Finding, worst_first
from fdconv_zoo.analysis.kernels import disjoint_kernels, disjoint_similarity, kernel_similarity, mirrored_pairs
from fdconv_zoo.cli.diagnose import format_findings, main
from fdconv_zoo.data import SAMPLE, load_image_data, open_image
from fdconv_zoo.errors import ConfigError, DataError, DiagnosisError
from fdconv_zoo.layers.fdw import FourierDisjointWeight
from fdconv_zoo.layers.ksm import GlobalBranch
from fdconv_zoo.layers.modulators import find_modulators
from fdconv_zoo.layers.reference import from_reference

MODEL = "resnet10s_fdconv.fashion_mnist"
LAYER = "layer2.0.conv2"


@pytest.fixture(scope="module")
def healthy():
    return timm.create_model(MODEL, pretrained=True).eval()


@pytest.fixture(scope="module")
def images(healthy):
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(healthy))
    data = load_image_data(SAMPLE, split="validation", limit=12).validation
    return torch.stack([transform(open_image(record["image"])) for record in data])


@pytest.fixture
def model(healthy):
    """A trained one, to break."""
    broken = timm.create_model(MODEL.split(".")[0], num_classes=10)
    broken.load_state_dict(healthy.state_dict())
    return broken.eval()


def found(model, images=None, **run):
    """The checks that find something, with the worst severity of each, and all findings."""
    findings = diagnose(model, modulator_statistics(model, images) if images is not None else (), **run)
    assert findings == worst_first(findings)
    assert all(finding.remedy for finding in findings if finding.severity in ("fault", "warning"))
    worst = {}
    for finding in findings:
        worst.setdefault(finding.check, finding.severity)
    return {check: severity for check, severity in worst.items() if severity in ("fault", "warning")}, findings


def of(findings, check):
    return [finding for finding in findings if finding.check == check]


# Models


def test_a_healthy_model_has_no_faults(healthy, images):
    before = {name: value.clone() for name, value in healthy.state_dict().items()}
    worst, findings = found(healthy, images)
    assert not worst
    assert {finding.check for finding in findings if finding.severity == "ok"} == {*CHECKS} - {"gradients", "settings"}
    assert all(torch.equal(before[name], value) for name, value in healthy.state_dict().items())


def test_without_images_what_they_would_show_is_a_note(healthy):
    worst, findings = found(healthy)
    assert not worst
    (note,) = of(findings, "modulators")
    assert note.severity == "note"
    assert "--sample" in note.remedy


@pytest.mark.parametrize("name", ["resnet10s_fdconv", "convnext_atto_fdconv", "vit_tiny_patch16_224_fdconv"])
def test_nothing_is_wrong_with_a_fresh_model_but_that_it_is_not_trained(name):
    worst, findings = found(timm.create_model(name), None)
    assert not worst
    (note,) = of(findings, "modulators")
    assert "nothing trained yet" in note.message
    assert not of(findings, "norm")


def break_weights(model):
    model.layer3[0].conv1.fdw.spectrum.data[3, 4, 0] = math.nan


def break_statistics(model):
    model.layer3[0].bn1.running_var[2] = math.inf


def shuffle_groups(model):
    groups = model.get_submodule(LAYER).fdw.group_index
    groups.copy_(groups.flatten()[torch.randperm(groups.numel())].view_as(groups))


def swap_two_coefficients(model):
    groups = model.get_submodule(LAYER).fdw.group_index
    groups[0, 0], groups[72, -1] = groups[72, -1].clone(), groups[0, 0].clone()


def empty_a_group(model):
    groups = model.get_submodule(LAYER).fdw.group_index
    groups[groups == 63] = 62


def leave_coefficients_out(model):
    model.get_submodule(LAYER).fdw.group_index[5, 6] = 200


def replace_groups_by_another_shape(model):
    fdw = model.get_submodule(LAYER).fdw
    fdw.group_index = fdw.group_index[:4]


def share_kernels(model):
    """As if the groups of all kernels overlapped: each kernel is the mean of its own and all."""
    fdw = model.get_submodule(LAYER).fdw
    forward = fdw.forward

    def forward_of_all(attention=None, *, mix=True):
        return forward(None if attention is None else attention + attention.mean(1, keepdim=True), mix=mix)

    fdw.forward = forward_of_all


def reset_every_modulator(model):
    for modulator in find_modulators(model):
        modulator.reset_parameters()


def reset_one_head(model):
    for value in model.get_submodule(LAYER).ksm.global_branch.filter.parameters():
        nn.init.zeros_(value)


def reset_local_branch(model):
    model.get_submodule(LAYER).ksm.local_branch.reset_parameters()


def move_a_head_by_nothing(model):
    head = model.get_submodule(LAYER).ksm.global_branch.channel
    nn.init.zeros_(head.weight)
    nn.init.constant_(head.bias, 1e-5)


def reset_all_bands(model):
    for modulator in find_modulators(model):
        if hasattr(modulator, "band_edges"):
            modulator.reset_parameters()


def make_constant(model):
    head = model.get_submodule(LAYER).ksm.global_branch.kernel
    nn.init.zeros_(head.weight)
    nn.init.normal_(head.bias, std=0.3)


def make_bands_constant(model):
    head = model.get_submodule(LAYER).fbm.attention
    nn.init.zeros_(head.weight)
    nn.init.constant_(head.bias, 1.0)


def saturate_bands(model):
    model.get_submodule(LAYER).fbm.attention.bias.data.fill_(8.0)


def saturate_channels(model):
    model.get_submodule(LAYER).ksm.global_branch.channel.weight.data.mul_(1e3)


def freeze_fresh_statistics(model):
    for module in model.modules():
        if isinstance(module, GlobalBranch):
            module.norm.reset_running_stats()


def feed_the_norm_constants(model):
    norm = model.get_submodule(LAYER).ksm.global_branch.norm
    norm.running_var.fill_(1e-12)
    norm.running_mean.copy_(torch.randn(norm.num_features))


BROKEN = [
    (break_weights, "weights", "fault", "NaN"),
    (break_statistics, "weights", "fault", "layer3.0.bn1.running_var"),
    (shuffle_groups, "groups", "fault", "groups overlap"),
    (swap_two_coefficients, "groups", "fault", "groups overlap"),
    (empty_a_group, "groups", "fault", "empty"),
    (leave_coefficients_out, "groups", "fault", "no group.*200"),
    (replace_groups_by_another_shape, "groups", "fault", "shape"),
    (share_kernels, "kernels", "fault", "similarities of up to"),
    (reset_every_modulator, "modulators", "fault", "kernel, channel, filter, spatial, local: never moved"),
    (reset_one_head, "modulators", "fault", "^filter: never moved"),
    (reset_local_branch, "modulators", "fault", "^local: never moved"),
    (reset_all_bands, "modulators", "fault", "^band: never moved"),
    (freeze_fresh_statistics, "norm", "fault", "variance 1 of a fresh layer"),
    (feed_the_norm_constants, "norm", "warning", "the same for all training images"),
]
SEEN_IN_IMAGES = [
    (move_a_head_by_nothing, "modulators", "fault", "^channel: never moved"),
    (make_constant, "modulators", "fault", "^kernel: the same for all images"),
    (make_bands_constant, "modulators", "fault", "^band: the same for all images"),
    (saturate_bands, "modulators", "fault", "^band: up to 100 % .* saturated"),
    (saturate_channels, "modulators", "fault", "^channel: up to .* saturated"),
]


@pytest.mark.parametrize(
    ("break_it", "check", "severity", "message"), BROKEN, ids=lambda case: getattr(case, "__name__", "")
)
def test_what_is_broken_is_found_and_nothing_else(model, break_it, check, severity, message):
    break_it(model)
    worst, findings = found(model)
    assert worst == {check: severity}
    first = findings[0]
    assert re.search(message, first.message)
    if break_it not in (
        reset_every_modulator,
        reset_all_bands,
        freeze_fresh_statistics,
        break_weights,
        break_statistics,
    ):
        assert first.layers == (LAYER,)


@pytest.mark.parametrize(
    ("break_it", "check", "severity", "message"), SEEN_IN_IMAGES, ids=lambda case: getattr(case, "__name__", "")
)
def test_what_images_show_is_found_and_nothing_else(model, images, break_it, check, severity, message):
    break_it(model)
    assert found(model)[0] == {}
    worst, findings = found(model, images)
    assert worst == {check: severity}
    assert re.search(message, findings[0].message)
    assert findings[0].layers == (LAYER,)


def test_few_images_may_happen_to_be_alike(model, images):
    make_constant(model)
    worst, findings = found(model, images[:2])
    assert worst == {"modulators": "warning"}
    assert "8 different images" in findings[0].remedy


def test_features_that_overflow_are_found(model, images):
    worst, findings = found(model, images * math.inf)
    assert worst == {"modulators": "fault"}
    assert "infinite or NaN" in findings[0].message


def test_bands_that_never_moved_in_some_layers_may_have_inputs_of_one_pixel(model):
    model.layer4[0].conv2.fbm.reset_parameters()
    worst, findings = found(model)
    assert worst == {"modulators": "warning"}
    assert "single pixel" in findings[0].remedy


def test_a_model_without_ksm_has_no_norm_to_check():
    model = nn.Sequential(randomize(FDConv2d(8, 8, 3, ksm_global=False, ksm_local=False)))
    worst, findings = found(model)
    assert not worst
    assert not of(findings, "norm")


def test_the_groups_of_the_authors_are_none_to_worry_about():
    layer = randomize(FDConv2d(32, 32, 3, stored_groups=True))
    theirs = {"dft_weight": layer.fdw.spectrum.detach()[None], "KSM_Global.kernel_fc.bias": torch.zeros(64)}
    groups = from_reference(theirs)["fdw.group_index"]
    assert not torch.equal(groups, layer.fdw.group_index)
    layer.fdw.group_index = groups
    worst, findings = found(nn.Sequential(layer))
    assert not worst
    assert {finding.severity for finding in (*of(findings, "groups"), *of(findings, "kernels"))} == {"ok"}


def test_groups_of_very_different_sizes_are_a_warning():
    layer = randomize(FDConv2d(8, 8, 3, num_kernels=4))
    groups = layer.fdw.group_index
    radius = np.hypot(np.fft.fftfreq(24)[:, None], np.fft.rfftfreq(24))
    sizes = [10, 20, 30, groups.numel() - 60]
    sorted_groups = torch.arange(4, dtype=groups.dtype).repeat_interleave(torch.tensor(sizes))
    groups.view(-1)[torch.from_numpy(radius.ravel().argsort())] = sorted_groups
    worst, findings = found(nn.Sequential(layer))
    assert worst == {"groups": "warning"}
    assert findings[0].value == pytest.approx(sizes[3] / sizes[0])


# The similarity of kernels


@pytest.mark.parametrize("is_shuffled", [False, True])
@pytest.mark.parametrize(
    "layer",
    [
        FDConv2d(6, 4, 3, num_kernels=30, dtype=torch.float64),
        FDConv2d(5, 7, 3, num_kernels=31, dtype=torch.float64),
        FDConv2d(8, 8, 3, groups=8, num_kernels=12, dtype=torch.float64),
        FDLinear(12, 10, num_kernels=20, dtype=torch.float64),
    ],
    ids=["even", "odd", "depthwise", "linear"],
)
def test_similarity_from_coefficients_is_that_of_the_kernels(layer, is_shuffled):
    randomize(layer)
    fdw = layer.fdw
    with torch.no_grad():  # not that of a real kernel, as after training
        fdw.spectrum.add_(0.1 * torch.randn_like(fdw.spectrum))
    if is_shuffled:
        fdw.group_index = fdw.group_index.flatten()[torch.randperm(fdw.group_index.numel())].view_as(fdw.group_index)
    kernels = disjoint_kernels(layer)
    similarity = disjoint_similarity(layer)
    np.testing.assert_allclose(similarity, kernel_similarity(kernels), atol=1e-12)
    similar = (np.abs(similarity) > 1e-12) & ~np.eye(len(kernels), dtype=bool)
    np.testing.assert_array_equal(similar, mirrored_pairs(layer))
    assert similar.any()


def test_kernels_of_changed_layers_are_measured():
    layer = FDConv2d(8, 8, 3, num_kernels=6)
    add_lora(nn.Sequential(layer), 2)
    np.testing.assert_allclose(disjoint_similarity(layer), kernel_similarity(disjoint_kernels(layer)), atol=1e-6)
    assert isinstance(layer.fdw, FourierDisjointWeight)


# Runs

FLAGS = {
    **{"tune": "all", "batch_size": 64, "num_processes": 1, "opt": "adamw", "spectrum_lr": "auto", "clip_grad": 1.0},
    **{"modulator_lr": "auto", "warmup_epochs": 1, "updates_per_epoch": 20, "mixed_precision": "no"},
}
PARTS = ("plain", "vector", "spectrum", "trunk", "kernel", "channel", "filter", "spatial", "local", "band")


def make_rows(change=lambda part, update: {}, updates=range(10, 201, 10)):
    """A log of a run in which all parts of two layers learn; `change` replaces figures."""
    rows = []
    for update in updates:
        figures = {"gradient": 0.1, "weight": 2.0, "update": 0.004}
        parts = [
            {"layer": layer, "part": part} | figures | change(part, update) for layer in ("a", "b") for part in PARTS
        ]
        rows.append({"update": update, "lr": 1e-3, "parts": parts, "modulators": []})
    return rows


def found_in_run(rows=None, **flags):
    findings = diagnose(None, flags=FLAGS | flags, learning=make_rows() if rows is None else rows)
    return {f.check: f.severity for f in reversed(findings) if f.severity in ("fault", "warning")}, findings


def test_a_healthy_run_has_no_faults():
    worst, findings = found_in_run()
    assert not worst
    assert [finding.severity for check in ("gradients", "settings") for finding in of(findings, check)] == ["ok", "ok"]


def test_the_first_update_and_the_warm_up_may_be_otherwise():
    def change(part, update):
        figures = {"gradient": 0.0, "update": 0.0} if update == 10 and part != "plain" else {}
        return {"gradient": 1e-6} if update == 20 else figures

    assert not found_in_run(make_rows(change))[0]


def grown(factor):
    return lambda part, update: {"gradient": 0.1 * factor ** (update / 200)}


def replaced(of_part, **figures):
    return lambda part, update: figures if part == of_part else {}


def missing(key, when):
    return lambda part, update: {key: None} if when(part, update) else {}


GRADIENTS = {
    "grows": (grown(1e4), {}, "fault", "norm has grown"),
    "grows somewhat": (grown(60), {}, "warning", "norm has grown"),
    "NaN": (missing("gradient", lambda part, update: (part, update) == ("band", 90)), {}, "fault", "1 of 20"),
    "NaN in weights": (missing("weight", lambda part, update: update > 150), {}, "fault", "infinite or NaN"),
    "float16": (
        *(missing("gradient", lambda part, update: update % 40 == 0), {"mixed_precision": "fp16"}),
        *("warning", "which float16 therefore skipped"),
    ),
    "unreached": (replaced("spectrum", gradient=0.0), {}, "fault", "^spectrum: .* was 0"),
    "no head": (replaced("local", gradient=0.0), {}, "fault", "^local: .* was 0"),
    "no band": (replaced("band", gradient=0.0), {}, "warning", "^band: .* was 0"),
    "starves": (replaced("spectrum", update=2e-6), {}, "fault", "kernels starve"),
    "starves less": (replaced("spectrum", update=2e-5), {}, "warning", "kernels starve"),
    "overwritten": (replaced("spectrum", update=1.0), {}, "fault", "by 50 %"),
    "large steps": (replaced("spectrum", update=0.3), {}, "warning", "by 15 %"),
    "clipped": (lambda part, update: {"gradient": 10.0}, {"opt": "sgd"}, "warning", "clipped in 100 %"),
}


@pytest.mark.parametrize(("change", "flags", "severity", "message"), GRADIENTS.values(), ids=GRADIENTS)
def test_gradients_that_explode_or_starve_are_found(change, flags, severity, message):
    worst, findings = found_in_run(make_rows(change), **flags)
    assert worst == {"gradients": severity}
    assert re.search(message, findings[0].message)


def test_what_a_recipe_may_ask_for_is_no_fault():
    """Clipping to a small norm with AdamW, as Mask2Former; layer decay; a skipped update in float16; auto."""
    assert not found_in_run(make_rows(lambda part, update: {"gradient": 10.0}))[0]
    slow = make_rows(lambda part, update: {"update": 2e-6} if part == "spectrum" else {})
    assert not found_in_run(slow, layer_decay=0.7)[0]
    skipped = make_rows(lambda part, update: {"gradient": None} if update == 50 else {})
    assert not found_in_run(skipped, mixed_precision="fp16")[0]


def test_a_short_run_shows_nothing():
    worst, findings = found_in_run(make_rows(updates=range(1, 24, 10)))
    assert not worst
    assert (of(findings, "gradients")[0].severity, of(findings, "gradients")[0].message[:14]) == (
        "note",
        "only 1 updates",
    )


def test_a_run_that_was_not_watched_is_told_how():
    (note,) = of(found_in_run([])[1], "gradients")
    assert note.severity == "note"
    assert "--watch 20" in note.remedy


@pytest.mark.parametrize(
    ("flags", "severity"),
    [
        ({"batch_size": 1}, "fault"),
        ({"batch_size": 2}, "fault"),
        ({"batch_size": 2, "norm": "batch", "num_processes": 8}, "fault"),
        ({"batch_size": 2, "norm": "sync", "num_processes": 8}, None),
        ({"batch_size": 2, "norm": "sync", "num_processes": 4}, "warning"),
        ({"batch_size": 2, "norm": "frozen"}, None),
        ({"batch_size": 8, "grad_accum": 8}, "warning"),
        ({"batch_size": 16}, None),
    ],
)
def test_the_images_of_a_batch_are_counted(healthy, flags, severity):
    worst, findings = found(healthy, flags=FLAGS | flags)
    assert worst == ({"norm": severity} if severity else {})
    if severity:
        assert "images" in findings[0].message or "1 image" in findings[0].message


def test_frozen_parts_and_slow_spectra_are_told(healthy):
    assert found_in_run(spectrum_lr=0)[0] == {"settings": "warning"}
    assert found_in_run(modulator_lr=0.0)[0] == {"settings": "warning"}
    rows = make_rows()
    for row in rows:
        row["parts"] = [entry for entry in row["parts"] if entry["part"] != "spectrum"]
    assert found_in_run(rows)[0] == {"settings": "warning"}
    assert not found_in_run(rows, tune="modulators")[0]
    for opt, factor in (("adamw", 3 * 48 / math.sqrt(2) / 24), ("sgd", (3 * 48 / math.sqrt(2) / 24) ** 2)):
        worst, findings = found(healthy, flags=FLAGS | {"spectrum_lr": 1.0, "opt": opt})
        assert not worst
        (note,) = of(findings, "settings")
        assert note.severity == "note"
        assert "--spectrum-lr auto" in note.remedy
        assert note.value >= factor


def test_modulators_that_a_run_has_frozen_are_a_note():
    model = timm.create_model("resnet10s_fdconv")
    worst, findings = found(model, flags=FLAGS | {"tune": "head"}, was_trained=True)
    assert not worst
    assert "--tune head" in of(findings, "modulators")[0].message
    assert found(model, flags=FLAGS, was_trained=True)[0] == {"modulators": "fault"}


# The command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A real run of some seconds, watched."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    flags = [
        *TINY,
        "--limit",
        "64",
        "--epochs",
        "1",
        "--warmup-epochs",
        "0",
        "--batch-size",
        "16",
        "--grad-accum",
        "1",
        "--watch",
        "1",
    ]
    run_on_the_cpu(load_script("train"), *flags, "--output", folder)
    return folder


def test_a_run_is_diagnosed_with_what_it_has_measured(run, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    main([str(run), "--json", str(tmp_path / "found.json"), "--device", "cpu"])
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["model"], found["faults"]) == (str(run), 0)
    findings = [Finding(**finding | {"layers": tuple(finding["layers"])}) for finding in found["findings"]]
    assert {finding.check for finding in findings} == set(CHECKS)
    assert of(findings, "gradients")[0].message.endswith("in 4 updates after the warm-up; all parts move")
    assert "update 4" in of(findings, "modulators")[-1].message
    assert format_findings(findings, 100) in capsys.readouterr().out
    main([str(run / "last"), "--device", "cpu"])


def copy(run, folder, **flags):
    shutil.copytree(run, folder)
    config = yaml.safe_load((folder / "train_config.yaml").read_text()) | flags
    (folder / "train_config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_the_command_ends_with_the_faults(run, tmp_path, capsys):
    folder = copy(run, tmp_path / "run", batch_size=2)
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if name.endswith("ksm.global_branch.filter.weight") or name.endswith("ksm.global_branch.filter.bias"):
            weights[name].zero_()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DiagnosisError, match=r"run: 2 faults \(modulators, norm\)$"):
        main([str(folder), "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("fault    modulators   filter: never moved")
    assert lines[-1].startswith("2 faults, 0 warnings, ")


def test_a_run_without_weights_is_diagnosed_by_its_records(run, tmp_path, capsys):
    folder = copy(run, tmp_path / "run")
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
    rows = [json.loads(line) for line in (folder / "learning.jsonl").read_text().splitlines()]
    rows[-1]["parts"][0]["gradient"] = None
    (folder / "learning.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DiagnosisError, match=r"1 fault \(gradients\)"):
        main([str(folder)])
    assert "the run has left no weights" in capsys.readouterr().out


def test_broken_images_are_named_at_the_end(tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"no image could be read:\n .*broken.png"):
        main([MODEL, str(tmp_path / "broken.png"), "--device", "cpu"])
    with pytest.raises(DataError, match=r"1 files were left out:\n .*broken.png"):
        main([MODEL, str(tmp_path / "broken.png"), "--sample", "8", "--device", "cpu"])
    assert "0 faults, 0 warnings" in capsys.readouterr().out


def test_says_what_is_wrong(run, tmp_path):
    (tmp_path / "mine.json").write_text("mine")
    with pytest.raises(ConfigError, match=r"--json .*mine.json exists: choose another file, or remove it"):
        main([MODEL, "--json", str(tmp_path / "mine.json")])
    assert (tmp_path / "mine.json").read_text() == "mine"
    with pytest.raises(ConfigError, match="--sample 0: must be at least 1"):
        main([MODEL, "--sample", "0"])
    with pytest.raises(ConfigError, match="no such folder"):
        main([str(tmp_path / "nowhere")])
    folder = copy(run, tmp_path / "run")
    (folder / "learning.jsonl").write_text('{"update": 3}\n')
    with pytest.raises(ConfigError, match=r"learning.jsonl: it does not hold what --watch measures"):
        main([str(folder)])


def test_a_plain_model_is_refused(tmp_path):
    from timm.models import save_for_hf

    save_for_hf(timm.create_model("test_resnet"), tmp_path / "plain", safe_serialization=True)
    with pytest.raises(ConfigError, match="no FDConv layers, so there is nothing to diagnose"):
        main([str(tmp_path / "plain"), "--device", "cpu"])


def test_the_example_of_the_documentation(healthy, images, capsys):
    scope = run_examples("analysis.md", "Diagnose a model", model=healthy, images=images)
    assert scope["finding"].severity == "ok"
    assert "note gradients not known" in capsys.readouterr().out
