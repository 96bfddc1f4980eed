import argparse
import re

import pytest
from run_scripts import TINY, load_script

from fdconv_zoo.cli import predict, validate
from fdconv_zoo.cli.detect import DetectionTask
from fdconv_zoo.cli.ranges import RANGES, check_ranges
from fdconv_zoo.cli.segment import SegmentationTask
from fdconv_zoo.cli.train import ClassificationTask
from fdconv_zoo.errors import ConfigError


def parsers():
    yield from (task.build_parser() for task in (ClassificationTask, SegmentationTask, DetectionTask))
    yield validate.build_parser()
    parser = argparse.ArgumentParser()
    predict.add_arguments(parser)
    yield parser


def test_every_flag_that_is_a_number_has_a_range_and_its_default_is_inside():
    for parser in parsers():
        numbers = {action.dest for action in parser._actions if action.type in (int, float) and not action.choices}
        assert numbers <= RANGES.keys(), "add them to cli/ranges.py"
        check_ranges(argparse.Namespace(**{action.dest: action.default for action in parser._actions}))


def test_every_range_refuses_what_is_not_finite():
    for name in RANGES:
        for value in (float("nan"), float("inf"), -float("inf")):
            with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')}"):
                check_ranges(argparse.Namespace(**{name: value}))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--lr nan", "--lr nan: must be at least 0"),
        ("--limit 0", "--limit 0: must be at least 1"),
        ("--limit -5", "--limit -5: must be at least 1"),
        ("--workers -1", "--workers -1: must be at least 0 and at most 512"),
        ("--smoothing nan", "--smoothing nan: must be at least 0 and below 1"),
        ("--std -1", "--std -1.0: must be above 0"),
        ("--std 0.1 0 0.1", "--std 0.1 0.0 0.1: must be above 0"),
        ("--hflip 2", "--hflip 2.0: must be at least 0 and at most 1"),
        ("--seed -1", "--seed -1: must be at least 0 and at most 4,294,967,295"),
        ("--crop-pct -1", "--crop-pct -1.0: must be above 0 and at most 1"),
        ("--validation-fraction 1", "--validation-fraction 1.0: must be above 0 and below 1"),
        ("--scale 1 0.5", "--scale 1.0 0.5: the first number must not be above the second"),
        ("--scale 0.5 2", "at most 1"),
        ("--img-size 100000", "--img-size 100000: must be at least 1 and at most 16,384"),
        ("--model-kwargs channels", "--model-kwargs channels: must be KEY=VALUE"),
        ("--model-kwargs a=b=c", "--model-kwargs a=b=c: must be KEY=VALUE"),
    ],
)
def test_wrong_numbers_are_named_before_anything_is_touched(tmp_path, flags, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_script("train").main([*TINY, *flags.split(), "--output", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_validate_and_predict_check_their_numbers():
    with pytest.raises(ConfigError, match="--batch-size 0: must be at least 1"):
        validate.main(["--model", "resnet18", "--dataset", "x", "--batch-size", "0"])
    with pytest.raises(ConfigError, match=r"--score 1\.5: must be at least 0 and at most 1"):
        predict.main(["--model", "resnet18", "x.png", "--score", "1.5"])
