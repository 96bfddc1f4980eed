"""Diagnose a model with FDConv, or the run that trained it: what is wrong, and what to do."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fdconv_zoo.analysis.findings import Finding, worst_first
from fdconv_zoo.analysis.model_checks import (
    check_groups,
    check_kernels,
    check_norm_statistics,
    check_weights,
    is_trained,
)
from fdconv_zoo.analysis.modulator_checks import check_modulators
from fdconv_zoo.analysis.run_checks import FEWEST, after_warm_up, check_batch, check_gradients, check_settings
from fdconv_zoo.layers.ksm import GlobalBranch
from fdconv_zoo.layers.modulator_statistics import ModulatorStatistics

CHECKS = ("weights", "groups", "kernels", "modulators", "norm", "gradients", "settings")


def diagnose(
    model: nn.Module | None,
    statistics: Sequence[ModulatorStatistics] = (),
    *,
    flags: Mapping[str, Any] | None = None,
    learning: Sequence[Mapping[str, Any]] = (),
    was_trained: bool = False,
) -> list[Finding]:
    """Check a model for known problems of FDConv.

    Args:
        model: A model with FDConv layers; it is not changed. None: the run contains no weights.
        statistics: What `fdconv_zoo.analysis.modulator_statistics` returns for some images. Without them, the
            statistics of the last update in `learning` are used.
        flags: The contents of the run's train_config.yaml; None if the model does not belong to a run.
        learning: The rows of the run's learning.jsonl.
        was_trained: Whether the weights are known to be trained. A model also counts as trained if FDConv's own
            parameters have changed.

    Returns:
        Findings, the worst first: at least one for each check in `CHECKS` that is possible.
    """
    findings = [Finding("weights", "note", "the run has left no weights: only its records are checked")]
    if model is not None:
        findings = _check_model(model, statistics, flags or {}, learning, was_trained)
    if flags is None:
        remedy = "Give the output folder of a run."
        findings.append(Finding("gradients", "note", "not known: this is not the folder of a run", remedy=remedy))
        return worst_first(findings)
    if learning:
        findings += check_gradients(learning, flags)
    else:
        remedy = "Train with --watch 20: it measures gradients and movement of each part in every 20th update."
        findings.append(Finding("gradients", "note", "not known: the run was not watched", remedy=remedy))
    findings += check_settings(model, flags, learning)
    return worst_first(findings)


def _check_model(
    model: nn.Module,
    statistics: Sequence[ModulatorStatistics],
    flags: Mapping[str, Any],
    learning: Sequence[Mapping[str, Any]],
    was_trained: bool,
) -> list[Finding]:
    findings = check_weights(model)
    findings += check_groups(model)
    if findings[0].severity == "fault":
        return findings  # the other checks would only report it again
    findings += check_kernels(model)
    has_changed = is_trained(model)
    if not (has_changed or was_trained):
        message = "nothing trained yet: all are exactly 1, and the model computes what the plain one does"
        return [*findings, Finding("modulators", "note", message, remedy="Train it, and diagnose it again.")]
    if flags.get("tune") == "head" and not has_changed:
        message = "--tune head kept them at 1, so FDConv layers are plain ones"
        remedy = "Train with --tune modulators or --tune all."
        return [*findings, Finding("modulators", "note", message, remedy=remedy)]
    source = ""
    if not statistics and len(after_warm_up(learning, flags)) >= FEWEST:
        statistics = [ModulatorStatistics(**row) for row in learning[-1]["modulators"]]
        source = f", in update {learning[-1]['update']}"
    findings += check_modulators(model, statistics, source)
    if any(isinstance(module, GlobalBranch) for module in model.modules()):
        norm = [*check_norm_statistics(model), *check_batch(flags)]
        findings += norm or [Finding("norm", "ok", "KSM's BatchNorm has its own statistics")]
    return findings
