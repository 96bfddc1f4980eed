"""The kernels of dynamic convolutions: how diverse they are, and how the assembled kernel depends on the image.

Functions with an argument ``kernels`` (n, O, I, a, b) also accept the kernels of other dynamic convolutions.
"""

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fdconv_zoo.analysis.observe import find_dynamic_layers, observe
from fdconv_zoo.layers import FDConv2d, FDLinear
from fdconv_zoo.layers.fdw import FourierDisjointWeight
from fdconv_zoo.layers.untouched import TouchedError, untouched

Array = NDArray[np.floating]


@torch.no_grad()
def disjoint_kernels(layer: FDConv2d | FDLinear) -> Array:
    """Compute the kernels that Fourier Disjoint Weight mixes (section 3.1 of https://arxiv.org/abs/2503.18783).

    Kernel j is the inverse DFT of the coefficients of group j, with the neutral weight. The sum of all n kernels is the
    layer's kernel with neutral modulators.

    Returns:
        (n, O, I, a, b), in float32 or wider; I is the number of input channels of one group of the convolution.
    """
    fdw = layer.fdw
    device, count = fdw.spectrum.device, fdw.num_kernels
    # One kernel at a time: transforming all at once would need several times the memory of the result.
    attention = torch.eye(count, device=device).div_(count).split(1)
    return torch.cat([fdw(row).cpu() for row in attention]).numpy()


def group_map(layer: FDConv2d | FDLinear) -> NDArray[np.integer]:
    """Return the group of each Fourier coefficient of a layer's plane.

    Returns:
        (O*a, I*b//2 + 1), from 0 (the lowest frequencies) to n - 1. The frequencies of the rows are those of
        ``numpy.fft.fftfreq``, the frequencies of the columns those of ``numpy.fft.rfftfreq``.
    """
    return layer.fdw.group_index.cpu().numpy()


def kernel_similarity(kernels: Array | Tensor) -> Array:
    """Compute the cosine similarity of each pair of kernels.

    Disjoint kernels have no coefficient in common, so their similarity is 0, up to rounding. There is one exception: in
    the columns of the real DFT with frequencies 0 and 1/2, a coefficient and its mirror image represent the same
    sinusoid. If they are in different groups, two kernels contain a part of that sinusoid.

    Args:
        kernels: (n, ...).

    Returns:
        (n, n), from -1 to 1; NaN for a kernel that is zero.
    """
    flat = _as_array(kernels).reshape(len(kernels), -1)
    return _cosines(flat @ flat.T)


def _cosines(products: NDArray[Any]) -> Array:
    """Cosine similarities from scalar products (n, n)."""
    norms = np.sqrt(products.diagonal())
    with np.errstate(invalid="ignore"):
        return (products / norms / norms[:, None]).clip(-1, 1)  # exceeded by rounding only


def disjoint_similarity(layer: FDConv2d | FDLinear) -> Array:
    """Compute the cosine similarity of each pair of a layer's disjoint kernels.

    The result is that of ``kernel_similarity(disjoint_kernels(layer))``. Unless the layer has hooks or was otherwise
    modified, it is computed from the coefficients (Parseval), which is much faster and needs no memory for kernels.

    Returns:
        (n, n), from -1 to 1; NaN for a kernel that is zero.
    """
    try:
        (spectrum,) = untouched(layer.fdw, FourierDisjointWeight, 1)
    except TouchedError:
        return kernel_similarity(disjoint_kernels(layer))
    if spectrum is None:  # the parameter is kept elsewhere
        return kernel_similarity(disjoint_kernels(layer))
    coefficients = torch.view_as_complex(spectrum.detach().cpu().double().contiguous()).numpy()
    groups, count = group_map(layer).astype(np.int64), layer.fdw.num_kernels
    power = coefficients.real**2 + coefficients.imag**2
    # A coefficient represents two, except in the columns that are their own mirror images.
    columns, weights = _mirrored_columns(layer), np.full(groups.shape[1], 2.0)
    # The inverse transform only uses the Hermitian part of a column that is its own mirror image.
    weights[columns] = 0.5
    products = np.diag(np.bincount(groups.ravel(), (power * weights).ravel(), count))
    places, mirrored = groups[:, columns], _mirror(groups[:, columns])
    halves = (coefficients[:, columns] * _mirror(coefficients[:, columns])).real / 2
    products += np.bincount((places * count + mirrored).ravel(), halves.ravel(), count**2).reshape(count, count)
    return _cosines(products)


def mirrored_pairs(layer: FDConv2d | FDLinear) -> NDArray[np.bool_]:
    """Find the pairs of groups that each contain one half of a sinusoid: see `kernel_similarity`.

    Returns:
        (n, n), false on the diagonal.
    """
    count = layer.fdw.num_kernels
    groups = group_map(layer)[:, _mirrored_columns(layer)]
    pairs = np.zeros((count, count), bool)
    pairs[groups, _mirror(groups)] = True
    np.fill_diagonal(pairs, False)
    return pairs


def _mirrored_columns(layer: FDConv2d | FDLinear) -> list[int]:
    """Indices of the columns of the real DFT that are their own mirror images."""
    _, in_channels, _, width = layer.fdw.kernel_shape
    columns = in_channels * width
    return [0, columns // 2] if columns % 2 == 0 else [0]


def _mirror(columns: NDArray[Any]) -> NDArray[Any]:
    """Move the value at frequency -u to u."""
    return np.roll(columns[::-1], 1, axis=0)


def largest_similarity(similarity: Array) -> float:
    """Return the largest magnitude off the diagonal of a matrix (n, n); NaN for a single kernel."""
    others = _off_diagonal(similarity)
    return float(np.nanmax(others)) if np.isfinite(others).any() else float("nan")


def mean_similarity(similarity: Array) -> float:
    """Return the mean magnitude off the diagonal of a matrix (n, n), for n > 1; NaN if a kernel is zero."""
    return float(_off_diagonal(similarity).mean())


def _off_diagonal(similarity: Array) -> Array:
    """Magnitudes of the pairs (n * (n - 1),) of a matrix (n, n)."""
    return np.abs(similarity[~np.eye(len(similarity), dtype=bool)])


def plane_power(kernels: Array | Tensor, bins: int = 48) -> tuple[Array, Array]:
    """Compute how the power of each kernel is distributed over the frequencies of the plane.

    The plane has O*a rows and I*b columns, as in FDConv. The frequency of a coefficient is its radius.

    Args:
        kernels: (n, O, I, a, b).
        bins: number of equal intervals of the radius.

    Returns:
        Edges of the intervals (bins + 1,), in cycles per sample from 0 to sqrt(1/2), and power (n, bins). Summed over
        the intervals, the power is the squared norm of a kernel.
    """
    kernels = _as_array(kernels)
    _, out_channels, in_channels, height, width = kernels.shape
    rows, cols = out_channels * height, in_channels * width
    u, v = np.fft.fftfreq(rows), np.fft.rfftfreq(cols)
    edges = np.linspace(0, np.sqrt(0.5), bins + 1)
    interval = np.searchsorted(edges, np.hypot(u[:, None], v).ravel(), side="right") - 1
    interval = interval.clip(max=bins - 1)
    weights = np.where((v == 0) | (v == 0.5), 1, 2) / (rows * cols)  # a coefficient of the other columns represents two
    powers = []
    for kernel in kernels:
        coefficients = np.fft.rfft2(kernel.transpose(0, 2, 1, 3).reshape(rows, cols))
        power = (coefficients.real**2 + coefficients.imag**2) * weights
        powers.append(np.bincount(interval, power.ravel(), minlength=bins))
    return edges, np.stack(powers)


def spatial_response(kernels: Array | Tensor, size: int = 32) -> Array:
    """Compute the frequency response of kernels to images: the magnitude of the DFT of their zero-padded taps.

    Args:
        kernels: (n, O, I, a, b). The response of a single tap is flat.
        size: height and width of the result.

    Returns:
        (n, size, size), the root mean square over all pairs of channels, with frequency 0 in the middle.
    """
    kernels = _as_array(kernels)
    count, out_channels, in_channels, *taps = kernels.shape
    # The mean power is computed from the products of all pairs of taps, summed over all pairs of channels.
    flat = kernels.reshape(count, out_channels * in_channels, -1)
    products = flat.transpose(0, 2, 1) @ flat / (out_channels * in_channels)
    frequencies = np.fft.fftshift(np.fft.fftfreq(size))
    down, right = (np.exp(-2j * np.pi * frequencies[:, None] * np.arange(length)) for length in taps)
    waves = np.einsum("ua,vb->uvab", down, right).reshape(size, size, -1)
    power = np.einsum("uvs,nst,uvt->nuv", waves, products, waves.conj(), optimize=True).real
    return np.sqrt(power.clip(min=0))


def kernel_movement(model: nn.Module, image: Tensor, other: Tensor) -> dict[str, float]:
    """Measure how far each layer's assembled kernel moves between two images.

    Args:
        model: a model with FDConv layers; it is not changed.
        image, other: (1, C, H, W), preprocessed for the model; their sizes may differ.

    Returns:
        By layer, the norm of the difference of the two kernels divided by the norm of their mean; 0 if the kernel does
        not depend on the image.
    """
    layers = find_dynamic_layers(model)
    parts = [layer.ksm for layer in layers.values()]
    seen = [observe(model, x, parts) for x in (image, other)]
    movement = {}
    for name, layer in layers.items():
        if all(layer.ksm in calls for calls in seen):
            with torch.no_grad():
                first, second = (layer.assemble(calls[layer.ksm][0]) for calls in seen)
            movement[name] = float(2 * (first - second).norm() / (first + second).norm())
    return movement


def project_filters(kernels: Array | Tensor, method: Literal["pca", "tsne"] = "pca") -> Array:
    """Project the filters of several kernels to a plane, as figure 1 of the paper does with t-SNE.

    A filter is the part of a kernel for one output channel. t-SNE (https://jmlr.org/papers/v9/vandermaaten08a.html)
    takes minutes for more than a few thousand filters: then pass only some of the kernels.

    Args:
        kernels: (n, O, I, a, b).
        method: principal component analysis or t-SNE, from scikit-learn.

    Returns:
        (n, O, 2).
    """
    from sklearn.decomposition import PCA  # takes a second to import
    from sklearn.manifold import TSNE

    kernels = _as_array(kernels)
    points = kernels.reshape(kernels.shape[0] * kernels.shape[1], -1)
    if method == "pca":
        projected = PCA(2, random_state=0).fit_transform(points)
    else:
        projected = TSNE(2, perplexity=min(30, (len(points) - 1) / 3), random_state=0).fit_transform(points)
    return projected.reshape(*kernels.shape[:2], 2)


def _as_array(kernels: Array | Tensor) -> Array:
    if isinstance(kernels, Tensor):
        kernels = kernels.detach().cpu()
        return (kernels if kernels.dtype == torch.float64 else kernels.float()).numpy()
    return kernels
