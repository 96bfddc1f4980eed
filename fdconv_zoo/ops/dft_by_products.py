"""FDW's inverse transform as matrix products, for ONNX programs.

All sizes are Python integers from the kernel's shape, since a tracing exporter turns sizes of tensors into tensors.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def inverse_transform_by_products(coefficients: Tensor, rows: int, cols: int) -> Tensor:
    """Compute irfft2 as matrix products.

    The DFT of onnxruntime 1.32 takes 100 ns per element for lengths that are not powers of two, with an error of 4e-4.

    Args:
        coefficients: (B, R, C//2 + 1, 2).
        rows, cols: R and C.

    Returns:
        (B, C, R), the transposed planes.
    """
    num_cols = cols // 2 + 1
    columns = _inverse_dft(coefficients.permute(0, 3, 1, 2), rows, (rows, num_cols), parts=2)
    # The inner columns count twice, for their conjugates too; the real part of the next transform is then the result.
    multiplicity = np.where(np.arange(num_cols) * 2 % cols == 0, 1.0, 2.0)
    columns = columns * torch.tensor(multiplicity, dtype=columns.dtype, device=columns.device)
    return _inverse_dft(columns.transpose(2, 3), cols, (num_cols, rows), parts=1).squeeze(1)


def _inverse_dft(x: Tensor, length: int, sizes: tuple[int, int], parts: int) -> Tensor:
    """The inverse DFT in two steps, each a matrix product.

    With length = P * Q, frequency k = Q*p + q and time t = u + P*v, the angle k*t / length is p*u / P + q*t / length,
    up to whole turns. The first product sums over p, the second over q.

    Args:
        x: (B, 2, K, N), the real and imaginary parts of the first K <= length coefficients; the others are zero.
        length: length of the result.
        sizes: (K, N).
        parts: 2, or 1 to compute only the real part.

    Returns:
        (B, parts, length, N).
    """
    num_coefficients, num = sizes
    factor = next(factor for factor in range(math.isqrt(length), 0, -1) if length % factor == 0)  # Q
    outer, inner = -(-num_coefficients // factor), length // factor  # the number of p that occur, and P
    matrices = _inverse_dft_matrices(length, factor, outer, parts)
    first, second = (torch.tensor(matrix, dtype=x.dtype, device=x.device) for matrix in matrices)
    x = F.pad(x, (0, 0, 0, outer * factor - num_coefficients))
    x = (first @ x.reshape(-1, 2 * outer, factor * num)).view(-1, 2, inner, factor * num)
    x = second @ x.transpose(1, 2).reshape(-1, inner, 2 * factor, num)  # (B, P, parts*Q, N)
    return x.view(-1, inner, parts, factor, num).permute(0, 2, 3, 1, 4).reshape(-1, parts, length, num)


def _inverse_dft_matrices(length: int, factor: int, outer: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """The matrices of the two steps, (2*P, 2*outer) and (P, parts*Q, 2*Q).

    NumPy computes them, so that the exported program contains them as constants, and not the operations.
    """
    inner = length // factor
    u, p, v, q = (np.arange(size) for size in (inner, outer, factor, factor))
    # The phases are reduced in integers, where they are exact.
    first = _rotations(u[:, None] * p % inner / inner, parts=2)
    second = _rotations((u[:, None, None] + inner * v[:, None]) * q % length / length, parts)
    return first, second / length


def _rotations(turns: np.ndarray, parts: int) -> np.ndarray:
    """Multiplication by exp(2*pi*i*turns), (..., T, K), as real matrices (..., parts*T, 2*K)."""
    cos, sin = np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)
    rows = [np.concatenate((cos, -sin), axis=-1), np.concatenate((sin, cos), axis=-1)]
    return np.concatenate(rows[:parts], axis=-2)
