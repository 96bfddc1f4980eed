"""The facts in a model's index entry that follow from the code."""

from functools import lru_cache
from typing import Any

import timm
import torch

from fdconv_zoo.conversion.costs import count_multiply_adds, count_parameters
from fdconv_zoo.index.entry import Costs, Preprocessing
from fdconv_zoo.profiling import create_with_twin


def expected_facts(model: str) -> dict[str, Any]:
    """Compute the keys of an index entry that follow from the code.

    Args:
        model: Name of one of this package's models in timm, with its tag if it has one.

    Returns:
        ``source``, ``preprocessing``, ``costs``, and ``license`` if timm states one for the weights.
    """
    cfg = timm.get_pretrained_cfg(model)
    preprocessing = Preprocessing(
        list(cfg.input_size), list(cfg.mean), list(cfg.std), cfg.interpolation, float(cfg.crop_pct)
    )
    facts = {
        "source": cfg.hf_hub_id,
        "preprocessing": preprocessing,
        "costs": expected_costs(model.partition(".")[0], cfg.num_classes, cfg.input_size),
    }
    return facts | ({"license": cfg.license} if cfg.license else {})


@lru_cache
def expected_costs(architecture: str, num_classes: int, input_size: tuple[int, int, int]) -> Costs:
    """Count the costs of a model and its plain twin on the meta device."""
    with torch.device("meta"):
        twins = create_with_twin(architecture, num_classes=num_classes)
        image = torch.empty(1, *input_size)
    plain, dynamic = twins.values()
    return Costs(
        parameters=count_parameters(dynamic),
        plain_parameters=count_parameters(plain),
        multiply_adds=count_multiply_adds(dynamic, image)[0],
        plain_multiply_adds=count_multiply_adds(plain, image)[0],
    )
