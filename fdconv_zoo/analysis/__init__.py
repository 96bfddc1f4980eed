"""Analysis of FDConv's modulators and kernels in a model: functions that compute arrays, and others that plot them."""

from fdconv_zoo.analysis.modulators import modulator_statistics

__all__ = ["modulator_statistics"]
