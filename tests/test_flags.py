import argparse

import pytest
import torch

from fdconv_zoo.errors import ConfigError
from fdconv_zoo.training.flags import add_optimization_flags, check_optimization
from fdconv_zoo.training.optimizer import build_scheduler


def parse(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_optimization_flags(parser)
    return parser.parse_args([*flags, "--lr", "1", "--min-lr", "0", "--warmup-lr", "0.001"])


def rates(args: argparse.Namespace, *updates: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.lr)
    scheduler = build_scheduler(args, optimizer, updates_per_epoch=10)
    found = []
    for update in updates:
        scheduler.step_update(update)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_poly_falls_by_the_power_of_what_is_left():
    args = parse("--sched", "poly", "--power", "0.9", "--epochs", "4", "--warmup-epochs", "0")
    assert rates(args, 0, 10, 39) == pytest.approx([1, 0.75**0.9, 0.025**0.9])


def test_multistep_takes_a_tenth_at_each_milestone():
    args = parse("--sched", "multistep", "--milestones", "2", "3", "--epochs", "4", "--warmup-epochs", "0")
    assert rates(args, 0, 18, 20, 28, 30, 39) == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_warm_up_counts_updates():
    args = parse("--sched", "multistep", "--epochs", "12", "--warmup-epochs", "0.5")
    assert rates(args, 0, 4, 5) == pytest.approx([0.001, 0.001 + 0.999 * 4 / 5, 1])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--opt", "sdg"], "--opt sdg"),
        (["--cuda-graphs", "--grad-accum", "2"], "--cuda-graphs with --grad-accum 2"),
    ],
)
def test_wrong_flags_are_named(flags, message):
    with pytest.raises(ConfigError, match=message):
        check_optimization(parse(*flags))
