"""The "rebuild" path: kernels assembled image by image with torch's own operations, on any device.

All tensors have the layout of FDW's planes, O*a rows by I*b columns. With S the mixed plane, s = sigmoid(local logit),
and the factors m = spatial * channel of the columns and f = filter of the rows, the kernel is

    K = m * f * 2 * S * s

and, with P = K * dL/dK, the gradients are dL/dlogit = P * (1 - s), dL/dm = (column sums of P) / m, dL/df = (row sums
of P) / f. The gradient of the spectrum is the adjoint DFT of dL/dS.
"""

from torch import Tensor

from fdconv_zoo.ops.convolution import Geometry
from fdconv_zoo.ops.kernels_by_image import register
from fdconv_zoo.ops.operators import KernelShape, KernelTensors, safe_divide
from fdconv_zoo.ops.planes import LocalGates, MixedPlanes


class _Assembler:
    """See :class:`fdconv_zoo.ops.kernels_by_image.Assembler`."""

    def __init__(self, tensors: KernelTensors, kernel_shape: KernelShape, geometry: Geometry) -> None:
        _, in_channels, height, width = kernel_shape
        self.tensors, self.kernel_shape, self.groups = tensors, kernel_shape, geometry.groups
        self.gates = self.columns = None
        attention = tensors.attention
        if tensors.taps is not None:
            attention = 2 * attention  # the 2 of the local factor 2 * sigmoid
            taps = tensors.taps.reshape(self.groups, -1, width * tensors.taps.shape[-1])
            self.gates = LocalGates(taps, tensors.windows, width)
        self.planes = MixedPlanes(tensors.spectrum, tensors.group_index, attention, in_channels * width)
        if tensors.channel is not None:
            self.columns = tensors.channel.view(-1, self.groups, 1, in_channels, 1)
            if tensors.spatial is not None:
                self.columns = self.columns * tensors.spatial.view(-1, 1, height, 1, width)
            self.columns = self.columns.flatten(3)  # (B, G, a, C)
            self.column_sums = tensors.channel.new_empty(self.columns.shape)
        if tensors.filter is not None:
            self.row_sums = tensors.filter.new_empty(tensors.filter.shape)

    def make(self, images: slice) -> Tensor:
        planes = self.planes.make(images)
        if self.gates is not None:
            self.gate = self.gates.make(images)
            planes = planes * self.gate
        out_channels, in_channels, height, width = self.kernel_shape
        planes = self._scale(planes, images).view(-1, out_channels, height, in_channels, width)
        return planes.transpose(2, 3).contiguous()

    def add_gradient(self, images: slice, kernels: Tensor, grad: Tensor) -> None:
        product = self._to_planes(kernels * grad)
        by_row = self._split(product)
        if self.columns is not None:
            self.column_sums[images] = by_row.sum(2)
        if self.tensors.filter is not None:
            self.row_sums[images] = by_row.sum((3, 4)).flatten(1)
        grad = self._scale(self._to_planes(grad), images)
        if self.gates is not None:
            self.gates.add_gradient(product.addcmul_(product, self.gate, value=-1), images)
            grad.mul_(self.gate)
        self.planes.add_gradient(grad, images)

    def gradients(self) -> KernelTensors:
        spectrum, attention = self.planes.gradients()
        taps = windows = channel = filter_ = spatial = None
        if self.gates is not None:
            attention = 2 * attention
            taps, windows = self.gates.gradients()
            taps = taps.view(self.tensors.taps.shape)
        if self.tensors.filter is not None:
            filter_ = safe_divide(self.row_sums, self.tensors.filter)
        if self.columns is not None:
            sums = self.column_sums.unflatten(3, (-1, self.kernel_shape[3]))  # (B, G, a, I, b)
            channel = safe_divide(sums.sum((2, 4)).flatten(1), self.tensors.channel)
            if self.tensors.spatial is not None:
                spatial = safe_divide(sums.sum((1, 3)), self.tensors.spatial)
        return KernelTensors(spectrum, None, attention, taps, windows, channel, filter_, spatial)

    def _scale(self, planes: Tensor, images: slice) -> Tensor:
        """Multiply planes (b, R, C) by the factors of their columns and rows."""
        scaled = self._split(planes)
        if self.columns is not None:
            scaled = scaled * self.columns[images].unsqueeze(2)
        if self.tensors.filter is not None:
            factors = self.tensors.filter[images]
            scaled = scaled * factors.view(len(factors), self.groups, -1, 1, 1)
        return scaled.reshape(-1, *planes.shape[1:])

    def _split(self, planes: Tensor) -> Tensor:
        """(b, R, C) to (b, G, O/G, a, C), where the factors broadcast."""
        return planes.view(planes.shape[0], self.groups, -1, self.kernel_shape[2], planes.shape[-1])

    def _to_planes(self, kernels: Tensor) -> Tensor:
        """(b, O, I, a, b) to (b, R, C)."""
        out_channels, _, height, _ = self.kernel_shape
        return kernels.transpose(2, 3).reshape(len(kernels), out_channels * height, -1)


convolve_rebuild = register("rebuild", _Assembler)
