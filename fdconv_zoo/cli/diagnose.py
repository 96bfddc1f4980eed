"""Finds what is wrong with FDConv in a model, and names remedies."""

import argparse
import json
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from timm.data import create_transform
from torch import nn

from fdconv_zoo.analysis.diagnosis import diagnose
from fdconv_zoo.analysis.findings import SEVERITIES, Finding
from fdconv_zoo.analysis.modulators import modulator_statistics
from fdconv_zoo.analysis.observe import find_band_modulations, find_dynamic_layers
from fdconv_zoo.cli.parser import CommandParser
from fdconv_zoo.cli.predict import load_dense_model, read_images
from fdconv_zoo.cli.ranges import check_ranges
from fdconv_zoo.cli.trained_on import read_run
from fdconv_zoo.errors import ConfigError, DataError, DiagnosisError, first_of, listed
from fdconv_zoo.index import timm_name
from fdconv_zoo.layers.modulator_statistics import ModulatorObserver, ModulatorStatistics
from fdconv_zoo.store.build import build_model, image_mode, resolve_preprocessing
from fdconv_zoo.store.files import write_text
from fdconv_zoo.store.names import CONFIG_FILE, LOCAL
from fdconv_zoo.training.learning_log import NAME, read_learning

_WIDTH = 100  # of a line, if the output is not a terminal
_COLUMN = 22  # at which the text of findings begins


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the flags."""
    parser = CommandParser(
        prog="fdconv-zoo diagnose",
        description="Check a model, and the run that trained it, for the ways in which FDConv fails: weights that are "
        "not finite, groups that overlap, kernels that are similar, modulators that never moved, do not depend on the "
        "image or are saturated, BatchNorm in KSM fed too few images, gradients that explode or starve. Each "
        "finding has its remedy. The exit status is 1 if there is a fault, otherwise 0.",
    )
    parser.add_argument("model", help="the output folder of a run, a timm name, or hf-hub:NAME")
    parser.add_argument("images", nargs="*", type=Path, help="image files, or folders of them; best 8 or more")
    parser.add_argument("--sample", type=int, help="also N validation images of the packaged sample")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the findings here")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help="device of the model")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Print what is wrong with a model. `argv` defaults to `sys.argv[1:]`.

    Raises:
        ConfigError: there is no such model, it has no FDConv layers, or the file of `--json` exists.
        DataError: images cannot be read; raised after everything else is done.
        DiagnosisError: there is a fault; raised after everything is printed.
    """
    args = build_parser().parse_args(argv)
    check_ranges(args)
    if args.json is not None and args.json.exists():
        raise ConfigError(f"--json {args.json} exists: choose another file, or remove it")
    name = timm_name(args.model)
    flags, learning, was_trained = _read_records(name)
    problems: list[str] = []
    model, statistics = None, []
    if _has_weights(name) or not flags:
        model, statistics = _load_and_run(name, args, problems)
    findings = diagnose(model, statistics, flags=flags or None, learning=learning, was_trained=was_trained)
    print(format_findings(findings, shutil.get_terminal_size((_WIDTH, 24)).columns))
    faults = [finding for finding in findings if finding.severity == "fault"]
    if args.json is not None:
        found = {"model": args.model, "faults": len(faults), "findings": [asdict(finding) for finding in findings]}
        write_text(args.json, json.dumps(found, indent=2) + "\n")
    left_out = f"{len(problems)} files were left out:{listed(problems)}" if problems else ""
    if faults:
        checks = ", ".join(dict.fromkeys(finding.check for finding in faults))
        counted = f"{args.model}: {len(faults)} fault{'s' * (len(faults) > 1)} ({checks})"
        raise DiagnosisError(f"{counted}; {left_out}" if left_out else counted)
    if left_out:
        raise DataError(left_out)


def format_findings(findings: Sequence[Finding], width: int) -> str:
    """Format findings as text, and count them.

    Args:
        findings: In the order in which they are shown.
        width: Width of a line, in characters.
    """
    lines = []
    for finding in findings:
        head = f"{finding.severity:8} {finding.check:{_COLUMN - 9}}"
        texts = [finding.message]
        if finding.layers:
            count = len(finding.layers)
            texts.append(f"in {count} layer{'s' * (count > 1)}: {first_of(finding.layers, 3)}")
        if finding.remedy:
            texts.append(f"-> {finding.remedy}")
        for text in texts:
            indents = dict(initial_indent=head, subsequent_indent=" " * _COLUMN)
            lines += textwrap.wrap(text, max(width, 2 * _COLUMN), break_long_words=False, **indents)
            head = " " * _COLUMN
    counts = [(sum(finding.severity == severity for finding in findings), severity) for severity in SEVERITIES[:3]]
    words = [f"{count} {severity}{'s' * (count != 1)}" for count, severity in counts]
    return "\n".join([*lines, "", ", ".join(words)])


def _read_records(name: str) -> tuple[dict[str, Any], list[dict[str, Any]], bool]:
    """Read the flags and the learning log of a model's run, and whether the model's weights have been trained."""
    flags = read_run(name)
    if not flags:
        return {}, [], False
    folder = Path(name.removeprefix(LOCAL))
    run = folder.parent if folder.name == "last" else folder
    learning = read_learning(run)
    if not all(isinstance(row, dict) and {"update", "parts", "modulators"} <= row.keys() for row in learning):
        raise ConfigError(f"{run / NAME}: it does not hold what --watch measures; remove or restore it")
    try:
        rows = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        updates = [json.loads(row)["update"] for row in rows]
    except (OSError, ValueError, KeyError, TypeError):
        updates = []
    # The best weights may be those before training, which --eval-first evaluates.
    return flags, learning, bool(updates) and (updates[-1] if folder.name == "last" else min(updates)) > 0


def _has_weights(name: str) -> bool:
    return (Path(name.removeprefix(LOCAL)) / CONFIG_FILE).is_file()


def _load_and_run(
    name: str, args: argparse.Namespace, problems: list[str]
) -> tuple[nn.Module, list[ModulatorStatistics]]:
    """Load the model, and measure what its modulators do with the images, if there are any."""
    has_images = bool(args.images) or args.sample is not None
    dense_model = load_dense_model(name)
    if dense_model is not None:
        model = dense_model.to(args.device)
        _check_has_layers(model)
        return model, _run_dense(model, args, problems) if has_images else []
    model, _ = build_model(name)
    model.eval().to(args.device)
    _check_has_layers(model)
    if not has_images:
        return model, []
    preprocessing = resolve_preprocessing(model, use_test_size=True)
    transform = create_transform(**preprocessing)
    images = read_images(args.images, args.sample, image_mode(preprocessing), problems)
    statistics = modulator_statistics(model, *(transform(image)[None].to(args.device) for _, image in images))
    _check_read(statistics, problems)
    return model, statistics


def _run_dense(model: nn.Module, args: argparse.Namespace, problems: list[str]) -> list[ModulatorStatistics]:
    from fdconv_zoo.dense.prediction import make_predictor

    predictor = make_predictor(model)
    with torch.no_grad(), ModulatorObserver(model) as observer:
        for _, image in read_images(args.images, args.sample, "RGB", problems):
            predictor(image)
    statistics = observer.statistics()
    _check_read(statistics, problems)
    return statistics


def _check_has_layers(model: nn.Module) -> None:
    if not find_dynamic_layers(model) and not find_band_modulations(model):
        raise ConfigError(
            "the model has no FDConv layers, so there is nothing to diagnose; `fdconv-zoo list` prints models that "
            "have them"
        )


def _check_read(statistics: Sequence[ModulatorStatistics], problems: Sequence[str]) -> None:
    if not statistics and problems:
        raise DataError(f"no image could be read:{listed(problems)}")
