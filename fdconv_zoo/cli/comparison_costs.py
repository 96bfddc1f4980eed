"""Costs of the models of a comparison, measured interleaved on their training data."""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from fdconv_zoo.cli.task import CommandTask
from fdconv_zoo.conversion.costs import count_multiply_adds, count_parameters
from fdconv_zoo.profiling.memory import bytes_saved_for_backward
from fdconv_zoo.profiling.timing import time_interleaved, training_step

_REPEATS = 10


def measure_costs(task_type: type[CommandTask], runs: Sequence[argparse.Namespace]) -> list[dict[str, Any]]:
    """Measure training steps, interleaved, of networks with random weights on the first batch of their data.

    Args:
        task_type: The task.
        runs: The flags of one run of each model, the reference first.

    Returns:
        For each model ``parameters``; ``multiply_adds`` of inference for one training image; ``step_seconds`` and
        ``saved_bytes`` of a training step; and ``step_time`` and ``saved_memory``, these two as multiples of the
        reference's.
    """
    accelerator = Accelerator()
    costs, steps = [], []
    for args in runs:
        args = argparse.Namespace(**{**vars(args), "pretrained": False, "checkpoint": None})
        set_seed(args.seed)
        task = task_type(args, accelerator)
        task.load_data(args.dataset)
        network = task.build_model().to(accelerator.device)
        batch = next(task.training_batches(network).epoch(0))
        parameters, multiply_adds = count_parameters(network), count_multiply_adds(network, batch[0][:1])[0]
        network.train()
        saved = bytes_saved_for_backward(network, batch, task.loss)
        costs.append({"parameters": parameters, "multiply_adds": multiply_adds, "saved_bytes": saved})
        steps.append(training_step(network, batch, torch.float32, task.loss))
    for cost, (median, _) in zip(costs, time_interleaved(steps, _REPEATS, accelerator.device), strict=True):
        cost["step_seconds"] = median
    first = costs[0]
    return [
        {
            **cost,
            "step_time": cost["step_seconds"] / first["step_seconds"],
            "saved_memory": cost["saved_bytes"] / first["saved_bytes"],
        }
        for cost in costs
    ]
