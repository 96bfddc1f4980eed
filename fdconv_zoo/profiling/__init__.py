"""Profiles models beside their plain twins: parameters, multiply-adds, time and memory."""

from fdconv_zoo.conversion.costs import count_multiply_adds, count_parameters
from fdconv_zoo.profiling.checks import (
    check_computation,
    check_same_function,
    plain_copy,
    randomize_constants,
    randomize_modulators,
)
from fdconv_zoo.profiling.measure import Profile, profile
from fdconv_zoo.profiling.memory import bytes_saved_for_backward, peak_bytes_of_step
from fdconv_zoo.profiling.timing import time_interleaved
from fdconv_zoo.profiling.twin import create_with_twin

__all__ = [
    "Profile",
    "bytes_saved_for_backward",
    "check_computation",
    "check_same_function",
    "count_multiply_adds",
    "count_parameters",
    "create_with_twin",
    "peak_bytes_of_step",
    "plain_copy",
    "profile",
    "randomize_constants",
    "randomize_modulators",
    "time_interleaved",
]
