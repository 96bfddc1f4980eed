"""The two hot operations of FDConv as plain functions: assembling kernels, and splitting bands."""

from fdconv_zoo.ops.band_split import low_pass_basis, modulate_bands, modulate_bands_stretched
from fdconv_zoo.ops.kernel_assembly import assemble_kernels, mix_spectrum

__all__ = ["assemble_kernels", "low_pass_basis", "mix_spectrum", "modulate_bands", "modulate_bands_stretched"]
