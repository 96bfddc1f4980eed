"""fdconv-zoo: Frequency Dynamic Convolution (FDConv, CVPR 2025) for timm.

Importing the package registers its models with timm: ``timm.create_model("resnet50_fdconv", pretrained=True)``.
"""

from fdconv_zoo import startup as _startup
from fdconv_zoo.version import __version__

if not _startup.waits_for_command:  # a command loads the rest when it is needed
    from fdconv_zoo import backbones as _backbones  # noqa: F401  registers the entrypoints
    from fdconv_zoo.conversion import approximate_plain, convert_model, plan_conversion, to_plain
    from fdconv_zoo.layers import (
        FDConv2d,
        FDLinear,
        FourierDisjointWeight,
        FrequencyBandModulation,
        KernelSpatialModulation,
        add_lora,
        keep_kernels,
        merge_lora,
        param_groups,
        script_model,
        set_path,
    )
    from fdconv_zoo.layers.reference import from_reference

__all__ = [
    "FDConv2d",
    "FDLinear",
    "FourierDisjointWeight",
    "FrequencyBandModulation",
    "KernelSpatialModulation",
    "__version__",
    "add_lora",
    "approximate_plain",
    "convert_model",
    "from_reference",
    "keep_kernels",
    "merge_lora",
    "param_groups",
    "plan_conversion",
    "script_model",
    "set_path",
    "to_plain",
]
