"""What exported programs of free sizes consist of: low-passes as projectors, convolution as a sum over taps."""

import pytest
import torch
import torch.nn.functional as F
from conftest import relative_error
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.export import Dim, export

from fdconv_zoo.layers.fbm import BAND_EDGES
from fdconv_zoo.ops import Geometry, convolve, low_pass_basis
from fdconv_zoo.ops.bands_plain import low_pass_projectors
from fdconv_zoo.ops.convolution import geometry_arguments

DOUBLE = dict(device=torch.device("cpu"), dtype=torch.float64)


@given(
    size=st.integers(1, 70) | st.sampled_from([96, 128, 224]),
    cutoff=st.sampled_from([*BAND_EDGES, 1 / 8, 1 / 16, 0.2, 0.5, 1 / 3]) | st.floats(1e-3, 0.5),
)
def test_projectors_are_the_bases_products(size, cutoff):
    basis = low_pass_basis(size, cutoff, **DOUBLE)
    (projector,) = low_pass_projectors(size, [cutoff], **DOUBLE)
    assert torch.allclose(projector, basis @ basis.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 7, 16, 56, 64, 65, 112, 224])
def test_projectors_in_single_precision(size):
    exact = low_pass_projectors(size, BAND_EDGES, **DOUBLE)
    singles = low_pass_projectors(size, BAND_EDGES, device=torch.device("cpu"), dtype=torch.float32)
    for edge, single, projector in zip(BAND_EDGES, singles, exact, strict=True):
        basis = low_pass_basis(size, edge, **DOUBLE)
        assert single.dtype == torch.float32
        assert relative_error(single, basis @ basis.T) < 1e-6
        assert torch.allclose(projector, basis @ basis.T, rtol=0, atol=1e-12)


class Convolution(nn.Module):
    def __init__(self, geometry):
        super().__init__()
        self.geometry = geometry

    def forward(self, x, kernels):
        return convolve(x, kernels, self.geometry)


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry((3, 3), padding=(1, 1)),
        Geometry((3, 3), (2, 2), (1, 1)),
        Geometry((3, 3), (1, 1), (2, 2), (2, 2)),
        Geometry((5, 3), (2, 3), (3, 0), (1, 2)),
        Geometry((3, 3), (2, 1), (1, 1), groups=2),
        Geometry((7, 7), padding=(3, 3), groups=4),
        Geometry((1, 1), (2, 2)),
        Geometry((1, 1)),
        Geometry((1, 1), groups=2),
    ],
    ids=str,
)
def test_exported_convolutions_of_any_batch_and_size(geometry):
    def inputs(batch, height, width):
        kernels = torch.randn(batch, 8, 4 // geometry.groups, *geometry.kernel_size)
        return torch.randn(batch, 4, height, width), kernels

    free = ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}, {0: Dim.AUTO})
    program = export(Convolution(geometry), inputs(2, 12, 14), dynamic_shapes=free, strict=False)
    assert not any("conv2d" in str(node.target) for node in program.graph.nodes)
    for sizes in ((2, 12, 14), (3, 17, 9), (1, 8, 11)):
        x, kernels = inputs(*sizes)
        expected = [
            F.conv2d(image[None], kernel, None, *geometry_arguments(geometry))
            for image, kernel in zip(x, kernels, strict=True)
        ]
        assert relative_error(program.module()(x, kernels), torch.cat(expected)) < 1e-5
