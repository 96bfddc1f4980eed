"""Feature maps of any timm model, at the strides that a decoder needs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from timm.models import group_parameters
from torch import Tensor, nn

from fdconv_zoo.errors import ConfigError
from fdconv_zoo.store import check_finite, load_strictly, read_checkpoint
from fdconv_zoo.store.build import explain_download
from fdconv_zoo.store.names import unknown_name

# Arguments that the decoder determines, and those that would load other weights.
_RESERVED = {
    *("in_chans", "num_classes", "features_only", "out_indices", "output_stride", "feature_cls", "global_pool"),
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"),
}


class Backbone(nn.Module):
    """A timm model, truncated after its last requested feature map.

    Args:
        name: A model name registered with timm, such as ``resnet50_fdconv``, optionally with a tag.
        strides: Strides of the requested maps, finest first. A stride of 2 is skipped if the model does not have it.
            None: the last four maps, whose strides must differ.
        arguments: Keyword arguments for ``timm.create_model``.
        pretrained: True: load the published weights of `name`. A path: load this weights file.
        output_stride: Stride of the last map. Below 32, the last stages are dilated, which not all models support.

    Attributes:
        model: The timm model.
        channels: Channels of each map.
        strides: Stride of each map.

    Raises:
        ConfigError: the model is unknown, does not have maps at these strides or does not support the arguments, or
            the weights could not be loaded.
    """

    def __init__(
        self,
        name: str,
        strides: Sequence[int] | None = None,
        *,
        arguments: Mapping[str, Any] | None = None,
        pretrained: bool | str | Path = False,
        output_stride: int = 32,
    ) -> None:
        super().__init__()
        if problem := unknown_name(name):
            raise ConfigError(f"backbone {name}: {problem}")
        arguments = dict(arguments or {})
        if refused := sorted(_RESERVED & arguments.keys()):
            raise ConfigError(f"backbone_args {', '.join(refused)}: set automatically; remove it")
        if output_stride != 32:
            arguments["output_stride"] = output_stride
        try:
            model = _create(name, pretrained is True, arguments)
            if pretrained and pretrained is not True:
                _load_file(model, pretrained)
        except (AssertionError, OSError, RuntimeError, TypeError, ValueError) as error:
            reason = explain_download(error) or " ".join(line.strip() for line in str(error).splitlines()[:2])
            raise ConfigError(f"backbone {name} cannot be built with {arguments}: {reason.rstrip('.')}") from error
        info = list(getattr(model, "feature_info", []))
        reductions = [stage["reduction"] for stage in info]
        if strides is None:
            indices = _last_four(reductions, name)
        else:
            indices = _choose(reductions, [min(stride, output_stride) for stride in strides], name)
        self.channels = [info[index]["num_chs"] for index in indices]
        self.strides = [info[index]["reduction"] for index in indices]
        self._indices = model.prune_intermediate_layers(indices, prune_norm=True)
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute feature maps (B, C, H / stride, W / stride) of images (B, 3, H, W)."""
        return self.model.forward_intermediates(
            images, indices=self._indices, output_fmt="NCHW", intermediates_only=True
        )

    def layer_ids(self, coarse: bool = False) -> dict[str, int]:
        """Return the layer of each parameter, counted from 0 as in timm's layer decay."""
        matcher = self.model.group_matcher(coarse=coarse)
        return {f"model.{name}": layer for name, layer in group_parameters(self.model, matcher, reverse=True).items()}

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that the timm model excludes from weight decay."""
        return {f"model.{name}" for name in getattr(self.model, "no_weight_decay", set)()}


def _create(name: str, pretrained: bool, arguments: Mapping[str, Any]) -> nn.Module:
    if getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False):
        try:  # models with windows, such as Swin, support other sizes only with this argument
            return timm.create_model(
                name, pretrained=pretrained, num_classes=0, **{"strict_img_size": False, **arguments}
            )
        except TypeError:
            pass
    return timm.create_model(name, pretrained=pretrained, num_classes=0, **arguments)


def _load_file(model: nn.Module, path: str | Path) -> None:
    """Load the weights of a classifier, except its last layer."""
    tensors = read_checkpoint(path).tensors
    check_finite(path, tensors)
    classifier = model.pretrained_cfg.get("classifier", ())
    heads = tuple(f"{head}." for head in ([classifier] if isinstance(classifier, str) else classifier))
    load_strictly(model, {key: tensor for key, tensor in tensors.items() if not key.startswith(heads)}, path)


def _last_four(reductions: Sequence[int], name: str) -> list[int]:
    last = reductions[-4:]
    if len(set(last)) < 4:
        raise ConfigError(
            f"backbone {name}: its maps have strides {', '.join(map(str, reductions)) or 'unknown to timm'}, but four "
            "different strides are needed; choose another backbone, such as a ResNet, ConvNeXt or Swin"
        )
    return list(range(len(reductions) - 4, len(reductions)))


def _choose(reductions: Sequence[int], wanted: Sequence[int], name: str) -> list[int]:
    """Return the indices of the maps with the wanted strides; of several maps with one stride, the last."""
    chosen = []
    for stride, count in Counter(wanted).items():
        indices = [index for index, reduction in enumerate(reductions) if reduction == stride]
        if len(indices) < count and stride != 2:
            raise ConfigError(
                f"backbone {name}: its maps have strides {', '.join(map(str, reductions)) or 'unknown to timm'}, but "
                f"the decoder needs {', '.join(map(str, wanted))}; choose another backbone. For resnet10s_fdconv, "
                "set backbone_args {'stem_pool': True}"
            )
        chosen += indices[-count:]
    return chosen
