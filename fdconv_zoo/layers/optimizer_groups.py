"""Parameter groups for an optimizer, with FDConv's own learning rates and weight decays."""

import math
from collections.abc import Collection, Iterable
from fnmatch import fnmatch
from typing import Any, Literal

from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.utils import parametrize

from fdconv_zoo.layers.fdw import FourierDisjointWeight
from fdconv_zoo.layers.modulators import find_heads, find_modulators
from fdconv_zoo.layers.step_sizes import Change, head_change, spectrum_change

Factor = float | Literal["auto"]


def param_groups(
    model: nn.Module,
    lr: float | None = None,
    weight_decay: float = 0.0,
    *,
    optimizer: str = "adamw",
    layer_decay: float | None = None,
    no_weight_decay: Collection[str] = (),
    spectrum_lr: Factor = "auto",
    modulator_lr: Factor = "auto",
) -> list[dict[str, Any]]:
    """Group a model's parameters for an optimizer, so that FDConv learns at the pace of plain layers.

    With one learning rate for all parameters, Adam moves a kernel less through its spectrum than it moves a plain
    kernel, and it moves modulators further the more features they are computed from: see ``docs/learning_rates.md``.
    This function gives each spectrum and each layer that predicts modulators its own learning rate, and a weight decay
    that shrinks the weights in a step as much as in a plain layer. All other parameters are grouped as in timm.

    Frozen parameters are left out. Models wrapped by ``torch.compile``, ``DistributedDataParallel`` or
    ``DataParallel`` are unwrapped first.

    Args:
        model: a model with or without FDConv layers.
        lr: learning rate of all other parameters. Each group then has its learning rate under ``"lr"``, for use with
            any scheduler that multiplies it. None: each group has a factor under ``"lr_scale"`` instead. timm's
            schedulers apply it to the learning rate, also during warm-up and at the minimum. Pass the learning rate to
            the optimizer, as in ``create_optimizer_v2(model, "adamw", lr=1e-3, param_group_fn=param_groups)``.
        weight_decay: weight decay of all parameters except biases, norms, and those that ``model.no_weight_decay()``
            names.
        optimizer: name of the optimizer, as in timm; the factors depend on it. An unknown name is treated as AdamW:
            steps of the same size in all elements, and decoupled weight decay.
        layer_decay: factor of the learning rate from each layer to the one before it, for layers as timm counts them.
        no_weight_decay: names of more parameters without weight decay; ``*`` matches any characters.
        spectrum_lr: factor of the spectra's learning rate; their weight decay is not changed, so optimizers with
            decoupled decay, such as AdamW, also decay them by this factor more in a step. ``"auto"``: see above.
        modulator_lr: factor of the learning rate of all parameters of KSM and FBM. ``"auto"``: see above; this only
            changes the weights of layers that predict modulators. Their biases, the layers before them and learned
            band edges are trained with ``lr``.

    Returns:
        Dictionaries with ``"params"``, ``"weight_decay"``, and ``"lr"`` or ``"lr_scale"``. For Muon,
        ``"use_fallback"`` marks the groups that timm's Muon trains with AdamW.

    Raises:
        TypeError: ``model`` is not a module, or ``optimizer`` not a name.
        ValueError: a number out of range, or a factor that is neither a number nor ``"auto"``.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}: give the module, not its parameters.")
    if not isinstance(optimizer, str):
        raise TypeError(f"optimizer is {optimizer!r}: give its name, such as 'adamw' or 'sgd'.")
    for name, value in (("lr", lr), ("weight_decay", weight_decay), ("layer_decay", layer_decay)):
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}: it must be a finite number of at least 0.")
    for name, factor in (("spectrum_lr", spectrum_lr), ("modulator_lr", modulator_lr)):
        if factor != "auto" and (isinstance(factor, str) or not 0 <= factor < math.inf):
            raise ValueError(f"{name} is {factor!r}: it must be a finite number of at least 0, or 'auto'.")
    model = _unwrap(model)
    groups = _timm_groups(model, weight_decay, layer_decay, no_weight_decay)
    groups = _split_off(groups, _spectrum_changes(model, spectrum_lr, optimizer))
    groups = _split_off(groups, _modulator_changes(model, modulator_lr, optimizer))
    if lr is not None:
        for group in groups:
            group["lr"] = lr * group.pop("lr_scale", 1.0)
    return groups


def _unwrap(model: nn.Module) -> nn.Module:
    """The module inside wrappers, which has the names and methods that timm uses."""
    while True:
        if isinstance(model, DistributedDataParallel | DataParallel):
            model = model.module
        elif isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):  # of torch.compile
            model = compiled
        else:
            return model


def _timm_groups(
    model: nn.Module, weight_decay: float, layer_decay: float | None, no_weight_decay: Collection[str]
) -> list[dict[str, Any]]:
    patterns = {*getattr(model, "no_weight_decay", set)(), *no_weight_decay}
    # Expand patterns to names: older versions of timm do not support patterns.
    names = {name for name, _ in model.named_parameters() if any(fnmatch(name, pattern) for pattern in patterns)}
    if layer_decay is None:
        return param_groups_weight_decay(model, weight_decay, no_weight_decay_list=names)
    return param_groups_layer_decay(model, weight_decay, no_weight_decay_list=names, layer_decay=layer_decay)


def _spectrum_changes(model: nn.Module, factor: Factor, optimizer: str) -> dict[Tensor, Change]:
    layers = [module for module in model.modules() if isinstance(module, FourierDisjointWeight)]
    if factor == "auto":
        return {_spectrum(fdw): spectrum_change(fdw, optimizer) for fdw in layers}
    return {_spectrum(fdw): Change(factor) for fdw in layers}


def _spectrum(fdw: FourierDisjointWeight) -> Tensor:
    if parametrize.is_parametrized(fdw, "spectrum"):  # add_lora
        return fdw.get_parameter("parametrizations.spectrum.original")
    return fdw.spectrum


def _modulator_changes(model: nn.Module, factor: Factor, optimizer: str) -> dict[Tensor, Change]:
    modulators = find_modulators(model)
    if factor == "auto":
        weights = (head.weight for modulator in modulators for head in find_heads(modulator))
        return {weight: head_change(weight, optimizer) for weight in weights}
    return {parameter: Change(factor) for modulator in modulators for parameter in modulator.parameters()}


def _split_off(groups: Iterable[dict[str, Any]], changes: dict[Tensor, Change]) -> list[dict[str, Any]]:
    """Move the parameters with a change into separate groups after the others."""
    rest, moved = [], []
    for group in groups:
        members: dict[Change, list[Tensor]] = {}
        for parameter in group["params"]:
            members.setdefault(changes.get(parameter, Change(1.0)), []).append(parameter)
        for change, parameters in members.items():
            if change == Change(1.0):
                rest.append({**group, "params": parameters})
                continue
            changed = {
                **group,
                "params": parameters,
                "weight_decay": group["weight_decay"] * change.weight_decay,
                "lr_scale": group.get("lr_scale", 1.0) * change.lr,
            }
            moved.append({**changed, "use_fallback": True} if change.fallback else changed)
    return rest + moved
