"""Freezes parameters of networks for dense prediction."""

from collections.abc import Callable, Iterable
from copy import deepcopy

import torch
from torch import Tensor, nn

from fdconv_zoo.dense.backbone import Backbone
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.layers.modulators import find_modulators


def freeze_stages(backbone: Backbone, stages: int) -> None:
    """Freeze the stem and the first stages of a backbone, except FDConv's modulators.

    This is the detection configuration of FDConv's authors: their ``frozen_stages`` with KSM and FBM in
    ``need_grad_list``, because published weights do not include modulators. The norms of frozen stages keep their
    statistics if training starts with `fdconv_zoo.training.tuning.train_mode`.

    Args:
        backbone: Changed in place.
        stages: Number of stages; with 0, only the stem is frozen.

    Raises:
        ConfigError: the backbone has fewer stages.
    """
    layers = backbone.layer_ids(coarse=True)
    if not 0 <= stages <= max(layers.values()):
        raise ConfigError(f"--frozen-stages {stages}: this backbone has 0 (the stem) to {max(layers.values())}")
    modulating = {id(parameter) for modulator in find_modulators(backbone) for parameter in modulator.parameters()}
    for name, parameter in backbone.named_parameters():
        if layers[name] <= stages and id(parameter) not in modulating:
            parameter.requires_grad_(False)


def freeze_unused(module: nn.Module, outputs: Callable[[nn.Module, Tensor], Iterable[Tensor]]) -> None:
    """Freeze the parameters that no output depends on.

    Some decoders use only the first maps of a backbone that cannot be truncated there, such as HRNet. Other parameters
    never get a gradient, and torch's DistributedDataParallel would wait for it. In a single process they do no harm.

    Args:
        module: Changed in place; its buffers and the random state stay as they are.
        outputs: Computes the outputs of a copy of the module, which is in training mode, for images (2, 3, 64, 64).
    """
    copy = deepcopy(module).cpu().train()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        nodes = [output.grad_fn for output in outputs(copy, torch.rand(2, 3, 64, 64))]
    seen, used = set(), set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # the leaves of the graph
            used.add(id(node.variable))
        nodes += [following for following, _ in node.next_functions]
    for parameter, copied in zip(module.parameters(), copy.parameters(), strict=True):
        if id(copied) not in used:
            parameter.requires_grad_(False)
