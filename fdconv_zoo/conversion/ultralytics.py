"""Converts the networks of Ultralytics (YOLO, RT-DETR), which fold BatchNorm into convolutions before they predict.

Ultralytics is not imported: its blocks are recognised by their attributes ``conv``, ``bn`` and ``act``.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

from torch import nn

from fdconv_zoo.conversion.convert import convert_model
from fdconv_zoo.errors import WeightsError, first_of
from fdconv_zoo.layers import FDConv2d, FDLinear
from fdconv_zoo.layers.dynamic_kernel import DynamicKernel
from fdconv_zoo.layers.replace import find_layers


def convert_ultralytics(
    model: nn.Module, *, select: Callable[[str, nn.Module], bool] | None = None, dry_run: bool = False, **rules: Any
) -> nn.Module:
    """Convert layers of an Ultralytics network to FDConv layers, in place, without changing what it computes.

    Works like :func:`fdconv_zoo.convert_model`, and also adapts the network's ``fuse()``, which prediction, validation
    and export call. BatchNorm cannot be folded into a kernel that depends on the image, so ``fuse()`` puts the FDConv
    layer and its BatchNorm into one module, and folds all other blocks as usual. Blocks with parallel convolutions that
    ``fuse()`` adds up (such as ``RepConv``) are skipped. The network can be copied and pickled.

    Args:
        model: ``YOLO(...).model``.
        select, dry_run, **rules: as in :func:`fdconv_zoo.convert_model`, including options of FDConv layers.

    Returns:
        The network.

    Raises:
        TypeError: ``model`` is not a network of Ultralytics.
        TypeError, ValueError, RuntimeError: as in :func:`fdconv_zoo.convert_model`. The network is then unchanged.
    """
    if not isinstance(getattr(model, "model", None), nn.Sequential) or not callable(getattr(model, "fuse", None)):
        raise TypeError(
            f"A {type(model).__name__} is not a network of Ultralytics: pass the attribute `model` of a YOLO or RTDETR "
            "object, and any other model to fdconv_zoo.convert_model."
        )
    merged = {layer for block in model.modules() if _merges_convolutions(block) for layer in block.modules()}

    def wanted(name: str, layer: nn.Module) -> bool:
        return layer not in merged and (select is None or select(name, layer))

    convert_model(model, select=wanted, dry_run=dry_run, **rules)
    if not dry_run:
        # A partial, because a closure cannot be pickled. Saved networks refer to `_fuse` by its name.
        vars(model)["fuse"] = partial(_fuse, model)
    return model


class ConvertingTrainer:
    """Mixin that makes an Ultralytics trainer train a converted network.

    A trainer builds a new network from the configuration and the weights. With this class as its first base class, it
    then converts this network. Weights of plain and of converted networks can be loaded::

        class Trainer(ConvertingTrainer, DetectionTrainer):
            conversion = dict(include="model.?.*")

    Attributes:
        conversion: Arguments of :func:`convert_ultralytics`.
    """

    conversion: ClassVar[Mapping[str, Any]] = {}

    def get_model(self, cfg: Any = None, weights: nn.Module | None = None, verbose: bool = True) -> nn.Module:
        """Build the network as the trainer does, convert it, and load weights.

        Args:
            cfg: the network's configuration.
            weights: a plain network, or one converted in the same way; None for random weights.
            verbose: log what is built and loaded.

        Raises:
            WeightsError: ``weights`` has FDConv layers that this trainer does not make; the message names them.
        """
        # The trainer, the next base class, defines this method.
        plain = super().get_model(cfg=cfg, weights=weights, verbose=verbose)  # type: ignore[misc]
        model: Any = convert_ultralytics(plain, **self.conversion)
        trained = _dynamic_layers(weights) if isinstance(weights, nn.Module) else {}
        if trained:
            _check_layers(trained, _dynamic_layers(model))
            model.load(weights, verbose=verbose)
        return model


def _fuse(model: Any, *args: Any, **kwargs: Any) -> nn.Module:
    """Prepare blocks of an FDConv layer and a BatchNorm for inference, then call the network's own ``fuse()``."""
    for block in list(model.modules()):
        conv, norm = getattr(block, "conv", None), getattr(block, "bn", None)
        if isinstance(conv, FDConv2d) and isinstance(norm, nn.BatchNorm2d) and hasattr(block, "act"):
            block.conv = nn.Sequential(conv, norm)
            del block.bn  # the network's own fuse() skips blocks without it
            block.forward = block.forward_fuse
    return type(model).fuse(model, *args, **kwargs)


def _merges_convolutions(block: nn.Module) -> bool:
    """Whether fusing a block adds up the weights of parallel convolutions."""
    return hasattr(block, "fuse_convs") or (hasattr(block, "fuse") and hasattr(block, "conv1"))


def _dynamic_layers(model: nn.Module) -> dict[str, DynamicKernel]:
    layers: dict[DynamicKernel, list[str]] = find_layers(model, (FDConv2d, FDLinear))
    return {names[0]: layer for layer, names in layers.items()}


def _check_layers(trained: Mapping[str, DynamicKernel], made: Mapping[str, DynamicKernel]) -> None:
    """Check that FDConv layers have counterparts, because Ultralytics silently drops weights that do not fit."""
    if missing := trained.keys() - made.keys():
        problem = f"has FDConv layers where the trainer has none: {first_of(sorted(missing))}"
    elif differing := [name for name in trained if _options(trained[name]) != _options(made[name])]:
        problem = f"has FDConv layers with other options than the trainer's: {first_of(differing)}"
    else:
        return
    raise WeightsError(f"The network to start from {problem}. Give the trainer the `conversion` it was trained with.")


def _options(layer: DynamicKernel) -> tuple[int, bool, bool, bool]:
    """The settings that decide which parameters a layer has, except channels: those of a head depend on the classes."""
    ksm = layer.ksm
    return layer.fdw.num_kernels, ksm.global_branch is not None, ksm.local_branch is not None, layer.fbm is not None
