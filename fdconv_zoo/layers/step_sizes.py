"""How far one step of an optimizer moves FDConv's kernels and modulators, and what makes up for it.

*Spectra.* A kernel, as a plane of R rows and C columns, is ``irfft2(scale * spectrum)``. Up to the columns 0 and C/2,
which are their own mirror images, that is ``1/f`` times a rotation, with ``f = sqrt(R*C/2) / scale`` (Parseval). So a
step of Adam's size in every number of the spectrum moves the kernel f times less than the same step in the kernel's own
numbers, and a step along the gradient, which passes the rotation twice, f^2 times less. An optimizer whose step is a
share of the weights' norm needs no factor.

*Heads of the modulators.* They start at zero and sum up fan_in features. A step moves the logit in proportion to their
number, whether it follows the gradient or its sign (the rule of muP for such layers,
https://arxiv.org/abs/2203.03466). For features as they are behind BatchNorm and (Star)ReLU, whose magnitude is about
1/2 on average, a rate of 2/fan_in moves the logit by one learning rate: as far as its bias does.
"""

import math
from typing import NamedTuple

from timm.optim import get_optimizer_info
from torch import Tensor

from fdconv_zoo.layers.fdw import FourierDisjointWeight


class Change(NamedTuple):
    """What a parameter's settings are multiplied with.

    Attributes:
        lr: factor of the learning rate.
        weight_decay: factor of the weight decay.
        fallback: leave the parameter to the fallback of an optimizer for matrices.
    """

    lr: float
    weight_decay: float = 1.0
    fallback: bool = False


class Rule(NamedTuple):
    """The settings of a spectrum with factor f, by optimizer.

    Attributes:
        rate: the learning rate is multiplied by ``f**rate``.
        decay: the weight decay is divided by ``f**decay``.
        heads_fall_back: the rule holds for spectra alone: heads are left to the optimizer's fallback.
    """

    rate: int = 1
    decay: int = 1
    heads_fall_back: bool = False


_ADAMW = Rule()  # steps of one size in all numbers, and a decay apart from them
_RULES = {
    # Along the gradient; the decay is added to it, or goes with the rate.
    "sgd momentum nesterov sgdw nesterovw csgdw sgdc csgdc sgdp csgdp bnbsgd bnbsgd8bit fusedsgd": Rule(2, 2),
    # Of one size, but the decay is added to the gradient before.
    "adam adamax nadam nadamlegacy radam radamlegacy adopt cadopt fusedadam bnbadam bnbadam8bit": Rule(1, 2),
    "adagrad adadelta rmsprop rmsproptf crmsproptf": Rule(1, 2),
    # A share of the weights' norm.
    "lamb lambc clamb fusedlamb": Rule(0, 1),
    "lambw lambcw lambcd clambw": Rule(0, 0),
    "lars larc nlars nlarc": Rule(0, 2),
    # An orthogonal matrix, with the size of Adam's step; so is, nearly, what it does to the plane behind a spectrum.
    # Heads, as other last layers, are for the AdamW that such optimizers hold.
    "muon nmuon adamuon nadamuon": Rule(1, 1, heads_fall_back=True),
}
_RULE_OF = {name: rule for names, rule in _RULES.items() for name in names.split()}


def spectrum_change(fdw: FourierDisjointWeight, optimizer: str) -> Change:
    """Settings that move and shrink the kernel as those of a plain layer do.

    Args:
        fdw: whose spectrum.
        optimizer: its name, as in timm.
    """
    out_channels, in_channels, height, width = fdw.kernel_shape
    factor = math.sqrt(out_channels * height * in_channels * width / 2) / fdw.scale
    name, rule = _find_rule(optimizer)
    rate = factor**rule.rate
    return Change(rate, factor**-rule.decay / _extra_decay(name, rate))


def head_change(weight: Tensor, optimizer: str) -> Change:
    """Settings that move a modulator's logits alike whatever the number of features they are a sum of.

    Args:
        weight: (features out, fan_in or what multiplies to it).
        optimizer: its name, as in timm.
    """
    name, rule = _find_rule(optimizer)
    rate = min(2 / weight[0].numel(), 1.0) if rule.rate else 1.0
    return Change(rate, 1 / (rate * _extra_decay(name, rate)), rule.heads_fall_back)


def _find_rule(optimizer: str) -> tuple[str, Rule]:
    name = optimizer.lower().split("_")[-1]  # timm writes "lookahead_adamw"
    return name, _RULE_OF.get(name, _ADAMW)


def _extra_decay(name: str, rate: float) -> float:
    """timm's optimizers with "corrected" decay multiply it with the learning rate twice."""
    try:
        defaults = get_optimizer_info(name).defaults or {}
    except ValueError:
        return 1.0  # not timm's
    return rate if defaults.get("corrected_weight_decay") else 1.0
