"""Checks a newly built library in a process of its own, since an unsupported instruction would end the process.

The check assembles a kernel, computes its gradients, and compares both with their definition. It imports neither torch
nor this package, and so takes only a tenth of a second: ``python check.py LIBRARY``.
"""

import cmath
import ctypes
import math
import random
import sys
from array import array
from itertools import product

OUTPUTS, INPUTS, HEIGHT, WIDTH = 12, 12, 3, 3
ROWS, COLS = OUTPUTS * HEIGHT, INPUTS * WIDTH
BINS = COLS // 2 + 1
TAPS, KERNELS = 3, 64
TOLERANCE = 1e-5


def main(path: str) -> None:
    """Check the library at ``path``; exit with an error message if its results are wrong."""
    tensors = _draw_tensors()
    kernel, gradients = _run(ctypes.CDLL(path), tensors)
    logits, expected = _define(**tensors)
    largest = max(map(abs, expected))
    if not all(abs(a - b) <= TOLERANCE * largest for a, b in zip(kernel, expected, strict=True)):
        sys.exit("error: its kernels are wrong")
    # Where the kernel is linear in a tensor, sum(tensor * its gradient) is sum(kernel * the kernel's gradient). Taps
    # and windows act through logits; the derivative of sigmoid(x) is sigmoid(x) / (1 + exp(x)).
    linear = sum(value * value for value in expected)
    local = sum(value * value * logit / (1 + math.exp(logit)) for value, logit in zip(expected, logits, strict=True))
    for name in tensors.keys() - {"index"}:
        found = sum(value * slope for value, slope in zip(tensors[name], gradients[name], strict=True))
        if not abs(found - (local if name in ("taps", "windows") else linear)) <= TOLERANCE * linear:
            sys.exit(f"error: its gradient of {name} is wrong")


def _draw_tensors() -> dict[str, array]:
    numbers = random.Random(0)
    lengths = {
        "spectrum": ROWS * BINS * 2,
        "index": ROWS * BINS,
        "attention": KERNELS,
        "taps": ROWS * WIDTH * TAPS,
        "windows": INPUTS * TAPS,
        "channel": INPUTS,
        "filter": OUTPUTS,
        "spatial": HEIGHT * WIDTH,
    }
    tensors = {name: array("f", [numbers.uniform(-1, 1) for _ in range(length)]) for name, length in lengths.items()}
    return tensors | {"index": array("i", [numbers.randrange(KERNELS) for _ in tensors["index"]])}


def _run(library: ctypes.CDLL, tensors: dict[str, array]) -> tuple[array, dict[str, array]]:
    """Compute the library's kernel (O, I, a, b), and its gradients if the kernel's own gradient equals the kernel."""
    sizes = (ctypes.c_int64 * 12)(0, 1, 1, OUTPUTS, INPUTS, HEIGHT, WIDTH, 1, TAPS, KERNELS, 4, 2)
    library.fdconv_kernels_scratch.restype = ctypes.c_int64
    scratch = _floats(library.fdconv_kernels_scratch(sizes))
    kernel = _floats(ROWS * COLS)
    library.fdconv_assemble_kernels(sizes, _pointers(tensors), _pointer(kernel), _pointer(scratch))
    gradients = {name: _floats(len(values)) for name, values in tensors.items()}
    overwritten = kernel[:]
    library.fdconv_differentiate_kernels(
        sizes, _pointers(tensors), _pointer(overwritten), _pointer(kernel), _pointers(gradients), ctypes.c_int64(0),
        _pointer(scratch),
    )  # fmt: skip
    return kernel, gradients


def _define(
    spectrum: array, index: array, attention: array, taps: array, windows: array, channel: array, filter: array,
    spatial: array,
) -> tuple[list[float], list[float]]:  # fmt: skip
    """Compute the local logits and the kernel, (O, I, a, b), in double precision."""
    waves = [cmath.exp(2j * math.pi * k / ROWS) for k in range(ROWS)]  # COLS is ROWS
    weighed = [
        complex(spectrum[2 * at], spectrum[2 * at + 1]) * attention[index[at]] / (ROWS * COLS)
        for at in range(ROWS * BINS)
    ]
    columns = [
        [sum(weighed[q * BINS + k] * waves[q * row % ROWS] for q in range(ROWS)) for k in range(BINS)]
        for row in range(ROWS)
    ]
    logits, kernel = [], []
    for o, i, a, b in product(range(OUTPUTS), range(INPUTS), range(HEIGHT), range(WIDTH)):
        row, col = o * HEIGHT + a, i * WIDTH + b
        bins = [columns[row][k] * waves[k * col % COLS] for k in range(BINS)]
        value = 2 * sum(bins).real - bins[0].real - bins[-1].real
        tap = (row * WIDTH + b) * TAPS
        logit = sum(taps[tap + t] * windows[i * TAPS + t] for t in range(TAPS))
        factor = channel[i] * filter[o] * spatial[a * WIDTH + b]
        logits.append(logit)
        kernel.append(value * factor * 2 / (1 + math.exp(-logit)))
    return logits, kernel


def _floats(count: int) -> array:
    return array("f", bytes(4 * count))


def _pointer(values: array) -> ctypes.c_void_p:
    return ctypes.c_void_p(values.buffer_info()[0])


def _pointers(tensors: dict[str, array]) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*(values.buffer_info()[0] for values in tensors.values()))


if __name__ == "__main__":
    main(sys.argv[1])
