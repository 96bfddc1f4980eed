"""What FDConv's modulators and kernels do in a model: functions that return arrays, and others that draw them."""

from fdconv_zoo.analysis.modulators import modulator_statistics

__all__ = ["modulator_statistics"]
