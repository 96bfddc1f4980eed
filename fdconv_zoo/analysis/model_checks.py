"""Checks of a model's weights: finite numbers, disjoint groups and kernels of FDW, statistics of KSM's BatchNorm."""

import numpy as np
import torch
from torch import Tensor, nn

from fdconv_zoo.analysis.findings import Finding
from fdconv_zoo.analysis.kernels import Array, disjoint_similarity, group_map, largest_similarity, mirrored_pairs
from fdconv_zoo.analysis.observe import find_dynamic_layers
from fdconv_zoo.errors import first_of
from fdconv_zoo.layers import FDConv2d, FDLinear
from fdconv_zoo.layers.ksm import GlobalBranch, KernelSpatialModulation
from fdconv_zoo.layers.modulators import find_heads, find_modulators, name_layers

# Disjoint kernels have a similarity of 0; rounding, and halves of a sinusoid in trained layers, cause less than this.
SIMILAR = 0.01
_SAME_RADIUS = 1e-6  # cycles per sample: the authors' code sorts radii in float32

_REGROUP = (
    "Load the weights into a model that derives its groups (stored_groups=False, from a file without group_index), or "
    "convert the authors' file again with `fdconv-zoo convert`. What was trained with such groups has to be trained "
    "again."
)


def check_weights(model: nn.Module) -> list[Finding]:
    """Find weights and statistics that are infinite or NaN."""
    names = [name for name, value in model.state_dict().items() if not _is_finite(value)]
    if not names:
        return [Finding("weights", "ok", "all weights and statistics are finite")]
    layers = tuple(dict.fromkeys(name.rpartition(".")[0] for name in names))
    return [
        Finding(
            "weights",
            "fault",
            f"{first_of(names, 3)}: infinite or NaN",
            layers,
            float(len(names)),
            0.0,
            "Use earlier weights, such as the run's last good checkpoint; train with a lower learning rate, a "
            "longer warm-up or --clip-grad 1.0, and in bfloat16 instead of float16.",
        )
    ]


def is_trained(model: nn.Module) -> bool:
    """Whether FDConv's own parts were trained: a head is no longer zero, or the norm of a KSM has counted batches."""
    for part in find_modulators(model):
        if any(bool(value.any()) for head in find_heads(part) for value in head.parameters()):
            return True
        branch = getattr(part, "global_branch", None)
        counted = None if branch is None else getattr(branch.norm, "num_batches_tracked", None)
        if counted is not None and counted > 0:
            return True
    return False


def check_groups(model: nn.Module) -> list[Finding]:
    """Check the groups of Fourier coefficients: no group is empty, sizes are similar, radii do not overlap."""
    layers = find_dynamic_layers(model)
    if not layers:
        return [Finding("groups", "ok", "no layer has Fourier Disjoint Weight")]
    damaged: dict[str, list[str]] = {}
    overlapping: dict[str, float] = {}
    unequal: dict[str, float] = {}
    for name, layer in layers.items():
        if problem := _find_damage(layer):
            damaged.setdefault(problem, []).append(name)
            continue
        sizes = np.bincount(group_map(layer).ravel(), minlength=layer.fdw.num_kernels)
        if sizes.max() > 2 * sizes.min():
            unequal[name] = float(sizes.max() / sizes.min())
        if share := _misplaced(layer):
            overlapping[name] = share
    findings = [Finding("groups", "fault", what, tuple(of), remedy=_REGROUP) for what, of in damaged.items()]
    if overlapping:
        worst = max(overlapping.values())
        similar = max(_largest(disjoint_similarity(layers[name])) for name in overlapping)
        message = (
            f"groups overlap: by radius, up to {100 * worst:.1f} % of a layer's coefficients belong to another one; "
            f"kernels have cosine similarities of up to {similar:.1e}"
        )
        findings.append(Finding("groups", "fault", message, tuple(overlapping), worst, 0.0, _REGROUP))
    if unequal:
        worst = max(unequal.values())
        message = f"the largest group of a layer has up to {worst:.1f} times the coefficients of the smallest one"
        findings.append(Finding("groups", "warning", message, tuple(unequal), worst, 2.0, _REGROUP))
    return findings or [
        Finding("groups", "ok", "each coefficient is in one group, and groups are consecutive in radius")
    ]


def check_kernels(model: nn.Module) -> list[Finding]:
    """Find disjoint kernels that are similar.

    Pairs of kernels that each contain one half of a sinusoid are ignored. Layers whose groups are damaged or overlap
    are reported by `check_groups` only.
    """
    found: dict[str, float] = {}
    largest = 0.0  # including the ignored pairs
    for name, layer in find_dynamic_layers(model).items():
        if _find_damage(layer) or _misplaced(layer):
            continue
        similarity = disjoint_similarity(layer)
        largest = max(largest, _largest(similarity))
        found[name] = _largest(np.where(mirrored_pairs(layer), 0, similarity))
    worst = max(found.values(), default=0.0)
    if similar := tuple(name for name, value in found.items() if value > SIMILAR):
        return [
            Finding(
                "kernels",
                "fault",
                f"kernels that should be disjoint have cosine similarities of up to {worst:.2g}",
                similar,
                worst,
                SIMILAR,
                "Another module has replaced these layers' FDW, or their groups are wrong: build the model again and "
                "load its weights with load_state_dict(), or convert it again.",
            )
        ]
    message = f"disjoint: cosine similarities of at most {largest:.1e}"
    if largest > SIMILAR:
        message += ", where a border between two groups cuts a sinusoid in two"
    return [Finding("kernels", "ok", message, (), worst, SIMILAR)] if found else []


def check_norm_statistics(model: nn.Module) -> list[Finding]:
    """Find BatchNorm layers in KSM that have no useful statistics, although the modulators were trained."""
    fresh, flat = [], {}
    for part, layer in name_layers(model).items():
        branch = part.global_branch if isinstance(part, KernelSpatialModulation) else None
        if branch is None or getattr(branch.norm, "running_var", None) is None or not _is_used(branch):
            continue
        norm = branch.norm
        if not norm.running_mean.any() and bool((norm.running_var == 1).all()):
            fresh.append(layer)
        elif (share := float((norm.running_var < norm.eps).float().mean())) > 0.5:
            flat[layer] = share
    findings = []
    if fresh:
        findings.append(
            Finding(
                "norm",
                "fault",
                "KSM's BatchNorm has the mean 0 and the variance 1 of a fresh layer, though modulators were trained: "
                "its features are not normalized, and nearly the same for all images",
                tuple(fresh),
                remedy="Do not freeze KSM's BatchNorm with the backbone's: --norm frozen replaces it by one that "
                "follows the images, in your own loop fdconv_zoo.training.norms.set_norm(model, 'frozen'). With one "
                "image per process it has no statistics, either. Train again.",
            )
        )
    if flat:
        worst = max(flat.values())
        findings.append(
            Finding(
                "norm",
                "warning",
                f"{100 * worst:.0f} % of the features that KSM's BatchNorm normalizes were the same for all training "
                "images: their variance is below eps",
                tuple(flat),
                worst,
                0.5,
                "Look at what goes into these layers: their input may be zero, or a constant. If it is only small, "
                "normalize it before the layer.",
            )
        )
    return findings


def _is_finite(value: Tensor) -> bool:
    return not (value.is_floating_point() or value.is_complex()) or bool(torch.isfinite(value).all())


def _is_used(branch: GlobalBranch) -> bool:
    """Whether a head is not zero; otherwise, the norm has no effect."""
    heads = (branch.channel, branch.filter, branch.spatial, branch.kernel)
    return any(bool(value.any()) for head in heads if head is not None for value in head.parameters())


def _largest(similarity: Array) -> float:
    """The largest magnitude off the diagonal; 0 for a single kernel, or if kernels are zero."""
    return float(np.nan_to_num(largest_similarity(similarity)))


def _find_damage(layer: FDConv2d | FDLinear) -> str | None:
    """Why a layer's groups are not valid; None if they are."""
    groups, count = layer.fdw.group_index, layer.fdw.num_kernels
    if groups.shape != layer.fdw.spectrum.shape[:2]:
        return "the groups do not have the shape of the coefficients"
    if groups.is_floating_point() or groups.min() < 0 or groups.max() >= count:
        return f"coefficients are in no group: they are in others than 0 to n - 1, such as {groups.max()}"
    if len(groups.unique()) < count:
        return "groups are empty, so that their kernels are zero"
    return None


def _misplaced(layer: FDConv2d | FDLinear) -> float:
    """The share of coefficients whose radius is outside the range that their group has after sorting by radius."""
    groups = group_map(layer).astype(np.int64)
    _, in_channels, _, width = layer.fdw.kernel_shape
    u, v = np.fft.fftfreq(groups.shape[0]), np.fft.rfftfreq(in_channels * width)
    radius, places = np.hypot(u[:, None], v).ravel(), groups.ravel()
    ordered, ends = np.sort(radius), np.cumsum(np.bincount(places))
    first, last = ordered[np.append(0, ends[:-1])], ordered[ends - 1]
    outside = (radius < first[places] - _SAME_RADIUS) | (radius > last[places] + _SAME_RADIUS)
    return float(outside.mean())
