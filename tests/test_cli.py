import argparse
import io
import re
import sys

import pytest
import yaml

from fdconv_zoo.cli.entrance import run_command
from fdconv_zoo.cli.recipes import RecipeParser, add_arguments_flag
from fdconv_zoo.errors import ConfigError, DataError, EntryError, HubError, Terminated, WeightsError
from fdconv_zoo.index import MODELS


@pytest.fixture
def parser():
    made = RecipeParser("A script.")
    made.add_argument("--model")
    made.add_argument("--lr", type=float, default=0.1)
    made.add_argument("--min-lr", type=float, default=0.0)
    made.add_argument("--scale", type=float, nargs=2, default=[0.5, 1.0])
    made.add_argument("--image-column")
    made.add_argument("--mean", type=float, nargs="+")
    add_arguments_flag(made, "--model-kwargs", "model")
    made.add_argument("--pretrained", action=argparse.BooleanOptionalAction, default=True)
    return made


@pytest.fixture
def recipe(tmp_path):
    def write(**settings):
        entry = yaml.safe_load((MODELS / "resnet10s_fdconv.fashion_mnist.yaml").read_text())
        (tmp_path / "entry.yaml").write_text(yaml.safe_dump({**entry, "model": "resnet18", "recipe": settings}))
        return str(tmp_path / "entry.yaml")

    return write


def test_recipe_over_defaults_and_command_line_over_recipe(parser, recipe):
    config = recipe(lr=0.2, min_lr=-0.5, pretrained=False, scale=[0.1, 0.2], mean=[-0.5, 1])
    arguments = parser.parse(["--config", config, "--output", "o", "--lr", "0.3"], smoke={})
    assert (arguments.model, arguments.lr, arguments.min_lr) == ("resnet18", 0.3, -0.5)
    assert arguments.pretrained is False
    assert arguments.scale == [0.1, 0.2]
    assert arguments.mean == [-0.5, 1]
    assert parser.parse(["--config", config, "--output", "o", "--model", "mine", "--pretrained"], smoke={}).pretrained


def test_a_recipe_of_the_index_is_named(parser, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    parser.add_argument("--dataset")
    with pytest.raises(ConfigError, match=r"^resnet10s_fdconv.fashion_mnist: recipe key"):
        parser.parse(["--config", "resnet10s_fdconv.fashion_mnist", "--output", "o"], smoke={})


def test_smoke_stands_between_recipe_and_command_line(parser, recipe):
    config = recipe(lr=0.2, image_column="picture", min_lr=0.01)
    smoke = {"lr": 0.5, "image_column": None}
    arguments = parser.parse(["--config", config, "--output", "o", "--smoke"], smoke=smoke)
    assert (arguments.lr, arguments.image_column, arguments.min_lr) == (0.5, None, 0.01)
    assert parser.parse(["--config", config, "--output", "o", "--smoke", "--lr", "1"], smoke=smoke).lr == 1
    assert parser.parse(["--config", config, "--output", "o"], smoke=smoke).lr == 0.2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 1}, "'learning_rate' is not a flag of this command"),
        ({"lr": "fast"}, "--lr: invalid float value: 'fast'"),
        ({"scale": [1]}, "--scale: expected 2 arguments"),
        ({"overwrite": True}, "'overwrite' is not a flag"),
        ({"evaluate": "someone/model"}, "'evaluate' is not a flag"),
        ({"mean": [0.5, "--overwrite"]}, "'--overwrite' is not a value, but looks like a flag"),
        ({"mean": ["--output=elsewhere"]}, "'--output=elsewhere' is not a value"),
        ({"mean": ["-h"]}, "'-h' is not a value"),
        ({"model_kwargs": {"--overwrite": 1}}, "'--overwrite=1' is not a value"),
        ({"model_kwargs": {"a=b": 1}}, "must be KEY=VALUE"),
        ({"model": ["resnet18", "--overwrite"]}, "'--overwrite' is not a value"),
        ({"lr": [[["--overwrite"]]]}, "--lr: invalid float value"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named_with_its_file(parser, recipe, settings, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        parser.parse(["--config", recipe(**settings), "--output", "o"], smoke={})
    assert "entry.yaml: " in str(caught.value)


def test_unknown_flags_abbreviations_and_a_missing_output_are_errors(parser):
    for flags in (["--epochz", "1", "--output", "o"], ["--pretr", "--output", "o"]):
        with pytest.raises(ConfigError, match=flags[0]):
            parser.parse(flags, smoke={})
    with pytest.raises(ConfigError, match="--output DIR is required"):
        parser.parse([], smoke={})


def test_unknown_flags_come_with_a_remedy(parser):
    with pytest.raises(ConfigError, match=r"^unrecognized arguments: --outputt=o; did you mean --output\?$"):
        parser.parse(["--outputt=o"], smoke={})
    with pytest.raises(ConfigError, match=r"--wrong; `fdconv-zoo train --help` lists the flags$"):
        parser.parse(["--wrong"], smoke={})


@pytest.mark.parametrize(("rank", "shown"), [("0", "error: no\n"), ("1", "")])
def test_expected_errors_are_shown_once_without_a_traceback(monkeypatch, capsys, rank, shown):
    monkeypatch.setenv("RANK", rank)

    def main():
        raise ConfigError("no")

    with pytest.raises(SystemExit) as caught:
        run_command(main)
    assert caught.value.code == 1
    assert capsys.readouterr().err == shown


def test_other_errors_keep_their_traceback():
    def main():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(main)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"recipe": None}, "has no recipe"), ({"task": "detection"}, "is a recipe for detection: use fdconv-zoo detect")],
)
def test_an_entry_that_is_not_for_this_command_is_refused(parser, tmp_path, changes, message):
    entry = yaml.safe_load((MODELS / "resnet10s_fdconv.fashion_mnist.yaml").read_text())
    (tmp_path / "entry.yaml").write_text(yaml.safe_dump({**entry, **changes}))
    with pytest.raises(ConfigError, match=message):
        parser.parse(["--config", str(tmp_path / "entry.yaml"), "--output", "o"], smoke={})


@pytest.mark.parametrize("kind", [ConfigError, DataError, EntryError, HubError, WeightsError])
def test_what_the_user_can_mend_is_one_message(kind, capsys):
    def main():
        raise kind("do this")

    with pytest.raises(SystemExit, match="1"):
        run_command(main)
    assert capsys.readouterr().err == "error: do this\n"


def test_sigterm_ends_with_the_code_of_a_job_to_be_tried_again(capsys):
    def main():
        raise Terminated("after update 3")

    with pytest.raises(SystemExit) as caught:
        run_command(main)
    assert caught.value.code == 75
    assert capsys.readouterr().err == "\nended by SIGTERM after update 3\n"


def test_no_password_reaches_a_message(capsys):
    def main():
        raise DataError("http://me:pass@word@host/x?key=secret (and https://host/y?token=secret) fails: a?b@c")

    with pytest.raises(SystemExit):
        run_command(main)
    assert capsys.readouterr().err == "error: http://host/x (and https://host/y) fails: a?b@c\n"


def test_names_in_no_encoding_are_printed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    run_command(print, "caf\udce9")
    assert sys.stdout.buffer.getvalue() == b"caf\\udce9\n"


@pytest.mark.parametrize(
    ("words", "shown"),
    [([], "\nstopped\n"), (["--resume continues"], "\nstopped; --resume continues\n")],
)
def test_ctrl_c_ends_with_its_exit_code(words, shown, capsys):
    def main():
        raise KeyboardInterrupt(*words)

    with pytest.raises(SystemExit) as caught:
        run_command(main)
    assert caught.value.code == 130
    assert capsys.readouterr().err == shown
