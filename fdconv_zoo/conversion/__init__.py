"""Converts layers of any torch model to FDConv and back."""

from fdconv_zoo.conversion.approximate import Deviation, approximate_plain
from fdconv_zoo.conversion.convert import convert_model
from fdconv_zoo.conversion.plain import to_plain
from fdconv_zoo.conversion.plan import ConversionPlan, PlannedLayer, plan_conversion
from fdconv_zoo.conversion.select import SkippedLayer

__all__ = [
    "ConversionPlan",
    "Deviation",
    "PlannedLayer",
    "SkippedLayer",
    "approximate_plain",
    "convert_model",
    "plan_conversion",
    "to_plain",
]
