"""Checks of how a model was trained: its settings, and the gradients and updates that `--watch` has measured."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from torch import nn

from fdconv_zoo.analysis.findings import Finding, Severity
from fdconv_zoo.analysis.modulator_checks import MODULATORS
from fdconv_zoo.layers.fdw import FourierDisjointWeight
from fdconv_zoo.layers.modulators import name_layers
from fdconv_zoo.layers.step_sizes import spectrum_change

Row = Mapping[str, Any]  # a row of learning.jsonl
Flags = Mapping[str, Any]  # the contents of train_config.yaml

# Images in a batch. Normalized over two images, a feature only shows in which image it is larger. The relative error of
# a variance over 16 images is about a third, sqrt(2/15).
_NO_BATCH, _SMALL_BATCH = 2, 16
FEWEST = 4  # measured updates after the warm-up
_GROWN, _EXPLODED = 10.0, 100.0  # growth of the gradient's norm, from the first quarter to the last
_LARGE_STEP, _HUGE_STEP = 0.1, 0.3  # one update, as a share of the kernel's norm
_SLOW, _STARVED = 1e-2, 1e-3  # relative update, as a share of that of plain weights
_CLIPPED, _BEYOND = 0.9, 10.0  # share of updates, and the gradient's norm as a multiple of --clip-grad
_SKIPPED = 0.1  # share of updates that float16's loss scaling may skip
_OFF = 3.0  # ratio between the automatic factor of the learning rate and the chosen one


def check_batch(flags: Flags) -> list[Finding]:
    """Check the number of images that KSM's BatchNorm averages over in training."""
    if flags.get("tune") == "head" or flags.get("norm") == "frozen" or "batch_size" not in flags:
        return []
    is_shared = flags.get("norm") == "sync"
    images = flags["batch_size"] * (flags.get("num_processes", 1) if is_shared else 1)
    if images >= _SMALL_BATCH:
        return []
    remedy = (
        "Use a larger --batch-size; --grad-accum does not help, as each batch is normalized alone. In segmentation and "
        "detection: --norm frozen for backbones with trained weights, or --norm sync with several GPUs."
    )
    if images > _NO_BATCH:
        message = f"KSM's BatchNorm averaged over {images} images: the modulators depend on the rest of the batch"
        return [Finding("norm", "warning", message, (), float(images), float(_SMALL_BATCH), remedy)]
    left = "has no statistics" if images == 1 else "can tell no more than which of the two has more of a feature"
    message = f"KSM's BatchNorm was given {images} image{'s' * (images > 1)} at a time, and so {left}"
    return [Finding("norm", "fault", message, (), float(images), float(_SMALL_BATCH), remedy)]


def check_settings(model: nn.Module | None, flags: Flags, rows: Sequence[Row]) -> list[Finding]:
    """Check the learning rates of FDConv's parts, and whether spectra were trained."""
    findings = []
    whole = flags.get("tune", "all") == "all"
    for flag, of in (("spectrum_lr", "spectra"), ("modulator_lr", "modulators")):
        if flags.get(flag) == 0 and whole:
            name = f"--{flag.replace('_', '-')}"
            remedy = f"Train with {name} auto."
            message = f"{name} 0: the {of} were not trained"
            findings.append(Finding("settings", "warning", message, (), 0.0, 0.0, remedy))
    parts = {entry["part"] for row in rows for entry in row["parts"]}
    if whole and "plain" in parts and "spectrum" not in parts:
        message = "the spectra were frozen: kernels stayed as they were, though other weights were trained"
        findings.append(Finding("settings", "warning", message, remedy="Let fdw.spectrum require gradients."))
    factor, optimizer = flags.get("spectrum_lr"), flags.get("opt")
    if model is not None and isinstance(factor, int | float) and factor > 0 and optimizer and whole:
        slower = {
            layer: spectrum_change(part, optimizer).lr / factor
            for part, layer in name_layers(model).items()
            if isinstance(part, FourierDisjointWeight)
        }
        layer = max(slower, key=slower.get, default=None)
        if layer is not None and slower[layer] > _OFF:
            message = (
                f"--spectrum-lr {factor:g} with {optimizer}: kernels move up to {slower[layer]:.3g} times less in an "
                "update than those of plain layers"
            )
            layers = tuple(name for name, value in slower.items() if value > _OFF)
            remedy = "Try --spectrum-lr auto --modulator-lr auto: docs/learning_rates.md."
            findings.append(Finding("settings", "note", message, layers, slower[layer], _OFF, remedy))
    if findings:
        return findings
    if not whole:
        return [Finding("settings", "ok", f"trained with --tune {flags['tune']}")]
    return [Finding("settings", "ok", "all parts were trained, spectra at about the pace of plain layers")]


def check_gradients(rows: Sequence[Row], flags: Flags) -> list[Finding]:
    """Check the measurements of `--watch` for exploding gradients, and for parts that hardly move."""
    findings = [*_non_finite(rows, flags), *_unreached(rows)]
    late = after_warm_up(rows, flags)
    if len(late) >= FEWEST:
        findings += [*_growth(late), *_steps(late), *_movement(late, flags), *_clipping(late, flags)]
    elif not findings:
        message = f"only {len(late)} updates after the warm-up were measured"
        remedy = "Train longer, or with a smaller number after --watch."
        return [Finding("gradients", "note", message, (), float(len(late)), float(FEWEST), remedy)]
    if findings:
        return findings
    norms = [_norm(row) for row in late]
    message = f"norm {min(norms):.2g} to {max(norms):.2g} in {len(norms)} updates after the warm-up; all parts move"
    return [Finding("gradients", "ok", message)]


def after_warm_up(rows: Sequence[Row], flags: Flags) -> list[Row]:
    """Select the rows of updates after the warm-up of the learning rate."""
    warm_up = flags.get("warmup_epochs", 0) * flags.get("updates_per_epoch", 0)
    return [row for row in rows if row["update"] > warm_up]


def _non_finite(rows: Sequence[Row], flags: Flags) -> Iterable[Finding]:
    # In float16, an infinite gradient only means that the loss scale is lowered and the update is skipped.
    figures = ("weight", "update") if flags.get("mixed_precision") == "fp16" else ("gradient", "weight", "update")
    layers = _layers(entry for row in rows for entry in row["parts"] if None in [entry[key] for key in figures])
    skipped = sum(any(entry["gradient"] is None for entry in row["parts"]) for row in rows)
    if layers:
        yield Finding(
            "gradients",
            "fault",
            f"infinite or NaN in {skipped} of {len(rows)} updates",
            layers,
            skipped / len(rows),
            0.0,
            "Train from the beginning with a lower --lr, a longer --warmup-epochs or --clip-grad 1.0.",
        )
    elif rows and skipped / len(rows) > _SKIPPED:
        yield Finding(
            "gradients",
            "warning",
            f"infinite in {skipped} of {len(rows)} updates, which float16 therefore skipped",
            (),
            skipped / len(rows),
            _SKIPPED,
            "Train with --mixed-precision bf16, or with a lower --lr.",
        )


def _unreached(rows: Sequence[Row]) -> Iterable[Finding]:
    """Parts whose gradient is 0 in all updates but the first, in which timm's zero-initialized norms may block it."""
    if len(rows) < FEWEST:
        return
    largest: dict[tuple[str, str], float] = {}
    for row in rows[1:]:
        for entry in row["parts"]:
            key = entry["part"], entry["layer"]
            largest[key] = max(largest.get(key, 0.0), math.inf if entry["gradient"] is None else entry["gradient"])
    for part in ("spectrum", *MODULATORS):  # the trunk of KSM has no gradient while the heads are zero
        if layers := tuple(layer for (name, layer), value in largest.items() if name == part and value == 0):
            yield Finding(
                "gradients",
                "warning" if part == "band" else "fault",  # an input of a single pixel has no bands
                f"{part}: the gradient was 0 in every update, so nothing was learned",
                layers,
                0.0,
                0.0,
                "The loss does not reach these layers: they are unused, behind a weight of 0, or behind detach()."
                + " Or their input has a single pixel, which has no bands." * (part == "band"),
            )


def _growth(late: Sequence[Row]) -> Iterable[Finding]:
    quarter = len(late) // 4
    if quarter < 2:
        return
    first, last = (median(map(_norm, some)) for some in (late[:quarter], late[-quarter:]))
    if not first or not _GROWN <= last / first < math.inf:
        return
    entry = max(late[-1]["parts"], key=lambda entry: math.inf if entry["gradient"] is None else entry["gradient"])
    yield Finding(
        "gradients",
        "fault" if last / first >= _EXPLODED else "warning",
        f"the norm has grown {last / first:.3g} times, from {first:.2g} to {last:.2g}; in the last update, the part "
        f"{entry['part']} of one layer had the largest",
        (entry["layer"],),
        last / first,
        _EXPLODED if last / first >= _EXPLODED else _GROWN,
        "Train with a lower --lr, a longer --warmup-epochs or --clip-grad 1.0; if it is the spectrum or a modulator, "
        "with a smaller --spectrum-lr or --modulator-lr.",
    )


def _steps(late: Sequence[Row]) -> Iterable[Finding]:
    steps = _relative(late, "spectrum")
    if large := {layer: step for layer, step in steps.items() if step > _LARGE_STEP}:
        worst = max(large.values())
        severity: Severity = "fault" if worst > _HUGE_STEP else "warning"
        limit = _HUGE_STEP if severity == "fault" else _LARGE_STEP
        message = f"an update moves kernels by {100 * worst:.0f} % of their norm: they are overwritten, not trained"
        remedy = "Train with a smaller --spectrum-lr, such as auto, or a lower --lr."
        yield Finding("gradients", severity, message, tuple(large), worst, limit, remedy)


def _movement(late: Sequence[Row], flags: Flags) -> Iterable[Finding]:
    plain = [step for step in _relative(late, "plain").values() if step]
    # With layer decay, the first layers are meant to move little.
    if not plain or flags.get("layer_decay") or flags.get("spectrum_lr") == 0:
        return
    steps = {layer: step / median(plain) for layer, step in _relative(late, "spectrum").items()}
    if slow := {layer: step for layer, step in steps.items() if step < _SLOW}:
        least = min(slow.values())
        severity: Severity = "fault" if least < _STARVED else "warning"
        yield Finding(
            "gradients",
            severity,
            f"kernels starve: in an update they move by {least:.1e} of what plain weights do",
            tuple(slow),
            least,
            _STARVED if severity == "fault" else _SLOW,
            "Train with --spectrum-lr auto. If that is not enough, the gradient is lost behind these layers: look for "
            "saturated modulators, and norms with a weight near 0.",
        )


def _clipping(late: Sequence[Row], flags: Flags) -> Iterable[Finding]:
    limit = flags.get("clip_grad") or math.inf
    norms = [_norm(row) for row in late]
    share, beyond = sum(norm > limit for norm in norms) / len(norms), median(norms) / limit
    if share < _CLIPPED or beyond < _BEYOND:
        return
    # The steps of optimizers such as Adam do not depend on the scale of the gradients.
    is_shorter = any(name in flags.get("opt", "") for name in ("sgd", "momentum", "nesterov"))
    part, portion = _largest_part(late)
    yield Finding(
        "gradients",
        "warning" if is_shorter else "note",
        f"clipped in {100 * share:.0f} % of the updates, at the median from {beyond:.3g} times --clip-grad; the {part} "
        f"parts have {100 * portion:.0f} % of the squared norm",
        (),
        beyond,
        _BEYOND,
        "Train with a larger --clip-grad, or a smaller learning rate for that part."
        if is_shorter
        else "Steps of Adam's kind do not get shorter by it. If the recipe does not ask for it: a larger --clip-grad.",
    )


def _largest_part(rows: Sequence[Row]) -> tuple[str, float]:
    squares: dict[str, float] = {}
    for entry in (entry for row in rows for entry in row["parts"]):
        squares[entry["part"]] = squares.get(entry["part"], 0.0) + (entry["gradient"] or 0.0) ** 2
    part = max(squares, key=squares.get)
    return part, squares[part] / (sum(squares.values()) or 1.0)


def _relative(rows: Sequence[Row], part: str) -> dict[str, float]:
    """By layer, the median norm of an update, as a fraction of the norm of the weights."""
    steps: dict[str, list[float]] = {}
    for entry in (entry for row in rows for entry in row["parts"]):
        if entry["part"] == part and entry["weight"] and entry["update"] is not None:
            steps.setdefault(entry["layer"], []).append(entry["update"] / entry["weight"])
    return {layer: median(values) for layer, values in steps.items()}


def _norm(row: Row) -> float:
    """The norm of the gradient over all parts."""
    return math.hypot(*(math.inf if entry["gradient"] is None else entry["gradient"] for entry in row["parts"]))


def _layers(entries: Iterable[Row]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(entry["layer"] for entry in entries))
