"""The processor that figures are measured on."""

import platform
from pathlib import Path


def cpu_name() -> str:
    """Return the processor's name, which Python's own functions report on few systems only."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
