"""The base class of `Segmenter` and `Detector`."""

import math
from collections.abc import Callable
from typing import Any

from huggingface_hub import ModelCard

from fdconv_zoo.dense.backbone import Backbone
from fdconv_zoo.dense.saved_model import SavedModel


class DenseModel(SavedModel):
    """A network for dense prediction on a timm backbone, which timm's optimizers can group by layer."""

    @property
    def backbone(self) -> Backbone:
        """The backbone; timm's model is its attribute ``model``."""
        return next(module for module in self.modules() if isinstance(module, Backbone))

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """Map parameter names to layers, for timm's layer decay: the backbone's in order, then everything else."""
        prefix = self._backbone_prefix()
        layers = {prefix + name: layer for name, layer in self.backbone.layer_ids(coarse).items()}
        return lambda name: layers.get(name, math.inf)

    def no_weight_decay(self) -> set[str]:
        """Return the names of the backbone's parameters to exclude from weight decay."""
        prefix = self._backbone_prefix()
        return {prefix + name for name in self.backbone.no_weight_decay()}

    def generate_model_card(self, **kwargs: Any) -> ModelCard:
        """Generate the model card.

        Args:
            **kwargs: ``repo_id``, ``dataset``, ``metrics`` (name to value) and ``table`` (Markdown), all optional.
        """
        return super().generate_model_card(**{"model": self.config, **kwargs})

    def _backbone_prefix(self) -> str:
        return next(f"{name}." for name, module in self.named_modules() if module is self.backbone)
