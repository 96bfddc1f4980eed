"""KernelWarehouse: layers whose kernels are assembled from the cells of a warehouse that a stage shares."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fdconv_zoo.profiling.peer_parts import check_replaceable, convolve_each, pool


class KernelWarehouse(nn.Module):
    """KernelWarehouse (https://arxiv.org/abs/2406.07879), with as many kernel parameters as plain layers: b = 1.

    Kernel partition: the kernel is cut into m cells of one tap each. Warehouse construction: cell i is the mixture
    ``sum_j a_ij e_j`` of the n cells of a warehouse. A single layer has its own warehouse;
    :func:`~fdconv_zoo.profiling.peers.replace_layers` makes one for each stage. The size of its cells is given by the
    greatest common divisors of the stage's channels, and it has as many cells as the stage's kernels.

    Contrasting-driven attention: ``a_ij = t b_ij + (1 - t) z_ij / sum_p |z_ip|``. z comes from the pooled image by two
    linear layers, which squeeze to a sixteenth of the channels, at least 16. b assigns to each mixture a cell of its
    own. The temperature t falls linearly from 1 to 0 over the first ``annealing_steps`` forward passes in training
    mode, which the buffer ``steps`` counts. The authors take 20 of 300 epochs; the default is the same fraction of
    7,500 steps.

    The layer starts as the convolution that it replaces: the assigned cells are those of its kernel, and t is 1. As t
    falls, its function changes. It cannot load the state dict of an ``nn.Conv2d``.

    The authors' code (https://github.com/OSVAI/KernelWarehouse) also normalizes the squeezed image over the batch,
    which is impossible for one image, and has a logit for an empty cell in each mixture, which only b < 1 needs.
    """

    def __init__(self, conv: nn.Conv2d, reduction: int = 16, annealing_steps: int = 500) -> None:
        super().__init__()
        check_replaceable(conv)
        self.kernel_shape = conv.weight.shape
        self.squeeze = nn.Linear(conv.in_channels, max(conv.in_channels // reduction, 16))
        self.annealing_steps = annealing_steps
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.geometry = (conv.stride, conv.padding, conv.dilation)
        self._take(_Warehouse([conv.weight]), 0)

    @staticmethod
    def share(layers: Sequence["KernelWarehouse"]) -> None:
        """Let untrained layers share one warehouse, with the cells of all their kernels.

        The first layer owns it, so that the state dict contains it once.
        """
        warehouse = _Warehouse([layer._start_kernel() for layer in layers])
        first = 0
        for layer in layers:
            layer._take(warehouse, first)
            first += len(layer.assigned)

    def _take(self, warehouse: "_Warehouse", first: int) -> None:
        """Use a warehouse in which the cells of the layer's kernel start at the index ``first``."""
        self.warehouse = warehouse if first == 0 else None
        self._shared = (warehouse,)  # a tuple, so that it is registered once
        cells = warehouse.cells
        num_mixtures = self.kernel_shape.numel() // cells[0].numel()
        assigned = torch.eye(len(cells), device=cells.device)[first : first + num_mixtures]
        self.register_buffer("assigned", assigned, persistent=False)
        self.attention = nn.Linear(self.squeeze.out_features, assigned.numel(), device=cells.device)

    def _start_kernel(self) -> Tensor:
        (warehouse,) = self._shared
        return warehouse.join((self.assigned @ warehouse.cells.flatten(1))[None], self.kernel_shape)[0]

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) to (B, O, H', W')."""
        (warehouse,) = self._shared
        if self.training:
            self.steps += 1
        temperature = (1 - self.steps / self.annealing_steps).clamp(min=0)
        logits = self.attention(self.squeeze(pool(x)).relu()).unflatten(1, self.assigned.shape)
        attention = temperature * self.assigned + (1 - temperature) * F.normalize(logits, p=1, dim=2)
        kernels = warehouse.join(attention @ warehouse.cells.flatten(1), self.kernel_shape)
        return convolve_each(x, kernels, self.geometry)


class _Warehouse(nn.Module):
    """The cells (n, o, i) of kernels (O, I, a, b), with o and i the greatest common divisors of all O and all I."""

    def __init__(self, kernels: Sequence[Tensor]) -> None:
        super().__init__()
        self.cell_shape = (math.gcd(*(k.shape[0] for k in kernels)), math.gcd(*(k.shape[1] for k in kernels)))
        self.cells = nn.Parameter(torch.cat([self.split(kernel.detach()) for kernel in kernels]))

    def split(self, kernel: Tensor) -> Tensor:
        """Cut a kernel (O, I, a, b) into its cells (m, o, i)."""
        rows, columns = self.cell_shape
        blocks = kernel.unflatten(0, (-1, rows)).unflatten(2, (-1, columns))  # (O/o, o, I/i, i, a, b)
        return blocks.permute(0, 2, 4, 5, 1, 3).flatten(0, 3)

    def join(self, cells: Tensor, kernel_shape: torch.Size) -> Tensor:
        """Assemble flat cells (B, m, o * i) into kernels (B, O, I, a, b)."""
        (rows, columns), (outputs, inputs, *taps) = self.cell_shape, kernel_shape
        blocks = cells.unflatten(2, self.cell_shape).unflatten(1, (outputs // rows, inputs // columns, *taps))
        return blocks.permute(0, 1, 5, 2, 6, 3, 4).reshape(-1, *kernel_shape)
