import json
import math
from argparse import Namespace
from types import SimpleNamespace

import literal
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from contract import FAMILIES, each_family, small
from examples import run_examples
from PIL import Image
from run_scripts import TINY, load_script, read_tracked, run_on_the_cpu
from torch import nn

from fdconv_zoo import FDConv2d, FrequencyBandModulation, add_lora
from fdconv_zoo.cli.ranges import check_ranges
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.layers.fdw import FourierDisjointWeight
from fdconv_zoo.layers.ksm import KernelSpatialModulation
from fdconv_zoo.layers.modulators import find_heads, find_modulators
from fdconv_zoo.layers.parameter_parts import PARTS, name_parts
from fdconv_zoo.training import trainer
from fdconv_zoo.training.learning_log import append_learning, cut_learning, read_learning
from fdconv_zoo.training.learning_picture import draw_learning
from fdconv_zoo.training.watch import Watch, gradient_scale, totals

train = load_script("train")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 1), FDConv2d(6, 8, 3, groups=2, num_kernels=5, padding=1), nn.BatchNorm2d(8), nn.Flatten()
    )


@each_family
def test_every_parameter_has_one_part(name):
    model = small(name)
    parts = name_parts(model)
    assert list(parts) == [name for name, _ in model.named_parameters()]
    modules = dict(model.named_modules())
    heads = {p for modulator in find_modulators(model) for head in find_heads(modulator) for p in head.parameters()}
    within = {FourierDisjointWeight: ("spectrum",), FrequencyBandModulation: ("band",)}
    within[KernelSpatialModulation] = ("trunk", "kernel", "channel", "filter", "spatial", "local")
    for name, parameter in model.named_parameters():
        layer, part = parts[name]
        assert layer in modules
        assert name.startswith(layer)
        above = [modules[name[:i]] for i, letter in enumerate(name) if letter == "."]
        expected = next((found for module in above for kind, found in within.items() if isinstance(module, kind)), None)
        assert part in (expected or ("plain" if parameter.dim() > 1 else "vector"))
        assert (part in PARTS[4:]) == (parameter in heads)  # which have learning rates of their own
    if name == FAMILIES["resnet"]:
        assert {part for _, part in parts.values()} == set(PARTS)


def step(model, watch, images, *, lr=1.0, decay=0.5, scale=1.0):
    """An update of SGD, and what it did in plain torch: gradients and weights before, weights after, by name."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=decay)
    with watch.forward():
        loss = model(images).square().mean() * scale
    loss.backward()
    gradients = {name: p.grad.clone() / scale for name, p in model.named_parameters() if p.grad is not None}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with watch.update(scale):
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    return gradients, before, {name: p.detach().clone() for name, p in model.named_parameters()}


def norm(tensors):
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def kernel(layer, spectrum):
    n = layer.fdw.num_kernels
    plain = literal.disjoint_weight(spectrum.double().numpy(), layer.fdw.kernel_shape, n, np.full(n, 1 / n))
    return torch.from_numpy(plain)


def test_figures_are_the_norms_of_what_an_update_does(model):
    watch = Watch(model, every=1)
    images = torch.randn(4, 3, 8, 8)
    step(model, watch, images)  # modulators leave neutral
    gradients, before, after = step(model, watch, images)
    assert norm(gradients.values()) > 0.2  # so that clipping, which comes later, would be seen
    names = {}
    for name, part in name_parts(model).items():
        names.setdefault(part, []).append(name)
    row = watch.row(7, 0.25)
    assert (row["update"], row["lr"]) == (7, 0.25)
    assert [(entry["layer"], entry["part"]) for entry in row["parts"]] == list(names)
    for entry in row["parts"]:
        of = names[entry["layer"], entry["part"]]
        old, new = ([state[name] for name in of] for state in (before, after))
        if entry["part"] == "spectrum":  # as the kernel that it stands for
            old, new = ([kernel(model[1], *state)] for state in (old, new))
        assert entry["gradient"] == pytest.approx(norm(gradients[name] for name in of), rel=1e-4)
        assert entry["weight"] == pytest.approx(norm(old), rel=1e-4)
        assert entry["update"] == pytest.approx(norm([b - a for a, b in zip(old, new, strict=True)]), rel=1e-3)
        assert entry["update"] > 0
    assert [(entry["layer"], entry["modulator"]) for entry in row["modulators"]] == [("1", part) for part in PARTS[4:]]
    assert all(0 < entry["distance"] < 1 and entry["images"] == 4 for entry in row["modulators"])


def test_scaled_gradients_are_scaled_back(model):
    watch = Watch(model, every=1)
    gradients, *_ = step(model, watch, torch.randn(4, 3, 8, 8), scale=1024.0)
    found = math.hypot(*(entry["gradient"] for entry in watch.row(1, 0.1)["parts"]))
    assert found == pytest.approx(norm(gradients.values()), rel=1e-4)


def test_the_scale_is_that_of_float16():
    assert gradient_scale(SimpleNamespace(scaler=None)) == 1
    assert gradient_scale(SimpleNamespace(scaler=torch.amp.GradScaler("cpu", init_scale=512.0))) == 512


def test_what_is_frozen_or_not_reached_is_told_apart(model):
    model[0].requires_grad_(False)
    model.append(nn.Linear(1, 1))
    model[4].forward = lambda x: x
    watch = Watch(model, every=1)
    step(model, watch, torch.randn(4, 3, 8, 8))
    parts = {(entry["layer"], entry["part"]): entry for entry in watch.row(1, 0.1)["parts"]}
    assert ("0", "plain") not in parts
    assert parts["4", "plain"]["gradient"] == parts["4", "plain"]["update"] == 0


def test_lora_moves_the_kernel(model):
    add_lora(model, 2)
    watch = Watch(model, every=1)
    step(model, watch, torch.randn(4, 3, 8, 8), decay=0.0)
    (entry,) = [entry for entry in watch.row(1, 0.1)["parts"] if entry["part"] == "spectrum"]
    assert entry["update"] > 0
    assert entry["weight"] == pytest.approx(model[1].fdw()[0].norm().item(), rel=0.01)


def test_the_first_update_and_every_nth_are_measured(model):
    assert [update for update in range(1, 12) if Watch(model, 5).is_due(update)] == [1, 5, 10]
    assert not any(Watch(model, 0).is_due(update) for update in range(1, 12))


def test_totals_sum_up_layers():
    parts = [
        {"layer": "a", "part": "plain", "gradient": 3.0, "weight": 6.0, "update": 0.3},
        {"layer": "b", "part": "plain", "gradient": 4.0, "weight": 8.0, "update": 0.4},
        {"layer": "b", "part": "kernel", "gradient": None, "weight": 0.0, "update": 0.1},
    ]
    modulators = [
        {"layer": "a", "modulator": "kernel", "distance": 0.1, "variation": 0.0, "saturated": 0.5},
        {"layer": "b", "modulator": "kernel", "distance": 0.7, "variation": None, "saturated": 0.0},
    ]
    found = totals({"parts": parts, "modulators": modulators})
    assert found.pop("distance") == {"kernel": pytest.approx(0.5)}
    assert found.pop("update") == {"plain": pytest.approx(0.05)}
    assert found == {"gradient": {"plain": 5.0}, "variation": {}, "saturated": {"kernel": 0.25}}


def test_an_infinite_gradient_is_written_as_null(model):
    watch = Watch(model, every=1)
    step(model, watch, torch.full((4, 3, 8, 8), math.inf))
    row = json.loads(json.dumps(watch.row(1, 0.1), allow_nan=False))
    assert None in [entry["gradient"] for entry in row["parts"]]
    assert None in [entry["distance"] for entry in row["modulators"]]
    totals(row)


def test_rows_are_read_up_to_a_broken_line_and_cut(tmp_path):
    cut_learning(tmp_path, 3)
    assert read_learning(tmp_path) == []
    assert not list(tmp_path.iterdir())
    for update in (1, 2, 4):
        append_learning(tmp_path, {"update": update})
    with (tmp_path / "learning.jsonl").open("a") as file:
        file.write('{"update": 6, "par')
    assert [row["update"] for row in read_learning(tmp_path)] == [1, 2, 4]
    cut_learning(tmp_path, 2)
    assert (tmp_path / "learning.jsonl").read_text() == '{"update": 1}\n{"update": 2}\n'


def test_a_network_without_fdconv_is_drawn_too(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Flatten())
    watch = Watch(model, every=1)
    step(model, watch, torch.randn(4, 3, 8, 8))
    row = watch.row(1, 0.1)
    assert row["modulators"] == []
    draw_learning([row], tmp_path / "learning.png")
    with Image.open(tmp_path / "learning.png") as picture:
        assert picture.width > 1000


def test_the_documented_example_runs(model, capsys):
    run_examples("learning_rates.md", "Watch a run", model=model, images=torch.randn(2, 3, 8, 8))
    assert "'saturated': 0.0" in capsys.readouterr().out


RUN = [*TINY, "--limit", "32", "--drop-path", "0.2", "--checkpoint-every", "2"]  # 2 epochs of 2 updates of 2 batches


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "watched"
    run_on_the_cpu(train, *RUN, "--watch", 1, "--output", folder)
    return folder


def weights(folder):
    names = ("model.safetensors", "last/model.safetensors", "checkpoints/update-000000004/ema.safetensors")
    return [(folder / name).read_bytes() for name in names]


@pytest.mark.usefixtures("on_one_cpu_thread", "blank_pictures")
def test_watching_changes_no_bit_of_the_weights(watched, tmp_path):
    run_on_the_cpu(train, *RUN, "--output", tmp_path / "run")
    assert weights(tmp_path / "run") == weights(watched)
    assert not (tmp_path / "run/learning.jsonl").exists()
    assert not (tmp_path / "run/learning.png").exists()


def test_a_watched_run_leaves_rows_a_picture_and_tracked_figures(watched):
    rows = read_learning(watched)
    assert [row["update"] for row in rows] == [1, 2, 3, 4]
    assert (watched / "learning.png").is_file()
    figures = read_tracked(watched)
    assert figures["learning/gradient/spectrum"] == pytest.approx([totals(r)["gradient"]["spectrum"] for r in rows])
    for name in ("learning/update/plain", "learning/distance/band", "learning/saturated/local"):
        assert len(figures[name]) == 4, name


@pytest.mark.usefixtures("on_one_cpu_thread", "blank_pictures")
def test_a_resumed_run_goes_on_in_the_same_file(watched, tmp_path, monkeypatch):
    folder, log = tmp_path / "run", trainer.Trainer.log_learning

    def stop(self):
        log(self)
        if self.progress.update == 3:  # the checkpoint is of update 2
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer.Trainer, "log_learning", stop)
    with pytest.raises(KeyboardInterrupt):
        train.main([*RUN, "--watch", "1", "--output", str(folder)])
    assert len(read_learning(folder)) == 3
    monkeypatch.setattr(trainer.Trainer, "log_learning", log)
    train.main([*RUN, "--watch", "1", "--output", str(folder), "--resume"])
    assert (folder / "learning.jsonl").read_bytes() == (watched / "learning.jsonl").read_bytes()
    assert weights(folder) == weights(watched)


@pytest.mark.parametrize("flag", ["--compile", "--cuda-graphs"])
def test_compiled_runs_are_refused(tmp_path, flag):
    flags = [*TINY, "--grad-accum", "1", "--watch", "5", flag, "--output", str(tmp_path / "run")]
    with pytest.raises(ConfigError, match=rf"--watch 5 with {flag}: .*use one of them"):
        train.main(flags)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("on_one_cpu_thread")
def test_sharded_runs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(ConfigError, match="--watch measures whole weights, and under FSDP"):
        train.main([*TINY, "--watch", "5", "--output", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_the_number_of_updates_has_a_range():
    with pytest.raises(ConfigError, match="--watch -1: must be at least 0"):
        check_ranges(Namespace(watch=-1))
