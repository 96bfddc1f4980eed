"""Checks that a written folder, loaded again through timm, computes the same as the original network."""

from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from fdconv_zoo.conversion.deviation import largest_deviation
from fdconv_zoo.errors import WeightsError

TOLERANCE = 1e-4  # of the largest feature; in double precision, only the rounding of the stored weights remains


@torch.no_grad()
def verify_folder(folder: Path, reference: nn.Module) -> float:
    """Compare features, and logits if there are any, on two images of noise, in double precision.

    Args:
        folder: a folder with ``config.json`` and ``model.safetensors``.
        reference: the model to compare with; it is converted to double precision.

    Returns:
        The largest deviation, as a fraction of the largest feature.

    Raises:
        WeightsError: the deviation is larger than the rounding of the stored weights explains.
    """
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval().double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *loaded.pretrained_cfg["input_size"], generator=generator, dtype=torch.float64)
    deviation = largest_deviation(_outputs(loaded, x), _outputs(reference.eval().double(), x))
    if not deviation <= TOLERANCE:
        raise WeightsError(
            f"The converted model, loaded again through timm, deviates by {deviation:.1e} of the largest feature, "
            f"where rounding explains {TOLERANCE:.0e}. Nothing was written."
        )
    return deviation


def _outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    features = model.forward_features(x)
    return [features, model.forward_head(features)] if model.num_classes else [features]
