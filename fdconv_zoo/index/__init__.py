"""The zoo's index: one YAML file per entry in `models/`, read and checked."""

from fdconv_zoo.index.entry import (
    MODELS,
    STATUSES,
    TASKS,
    Compared,
    Comparison,
    Costs,
    Entry,
    Preprocessing,
    Result,
    Results,
    find_entry,
    read_entry,
    read_index,
    timm_name,
)

__all__ = [
    "MODELS",
    "STATUSES",
    "TASKS",
    "Compared",
    "Comparison",
    "Costs",
    "Entry",
    "Preprocessing",
    "Result",
    "Results",
    "find_entry",
    "read_entry",
    "read_index",
    "timm_name",
]
