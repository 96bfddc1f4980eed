"""What FDConv's layers have learned, as functions of a model and images."""

from fdconv_zoo.analysis.modulators import modulator_statistics

__all__ = ["modulator_statistics"]
