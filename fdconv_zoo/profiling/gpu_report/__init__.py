"""A report on a GPU in sections: correctness, speed, profiles, tests; see ``scripts/gpu_report.py``."""

from fdconv_zoo.profiling.gpu_report.run import SECTIONS, write_report
from fdconv_zoo.profiling.gpu_report.section import Settings

__all__ = ["SECTIONS", "Settings", "write_report"]
