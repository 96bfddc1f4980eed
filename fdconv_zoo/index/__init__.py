"""The zoo's index: reads and checks `models/`, which has one YAML file per entry."""

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
