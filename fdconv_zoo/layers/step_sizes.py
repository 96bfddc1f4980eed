"""How far one optimizer step moves FDConv's kernels and modulators, and learning rates that compensate for it.

*Spectra.* A kernel, as a plane of R rows and C columns, is ``irfft2(scale * spectrum)``. Except for the columns 0 and
C/2, which are their own mirror images, this is ``1/f`` times a rotation, with ``f = sqrt(R*C/2) / scale`` (Parseval).
So a step of Adam, which has the same size in all elements, moves the kernel f times less through the spectrum than
directly. A step along the gradient, where the factor 1/f applies twice, moves it f^2 times less. An optimizer whose
step is proportional to the norm of the weights needs no factor.

*Heads of the modulators.* They start at zero and sum over fan_in features. A step along the gradient or its sign moves
the logit in proportion to fan_in (the rule of muP for such layers, https://arxiv.org/abs/2203.03466). After BatchNorm
and (Star)ReLU, the average magnitude of features is about 1/2: with 2/fan_in times the learning rate, a step moves the
logit by one learning rate, as far as a step of its bias does.
"""

import math
from typing import NamedTuple

from timm.optim import get_optimizer_info
from torch import Tensor

from fdconv_zoo.layers.fdw import FourierDisjointWeight


class Change(NamedTuple):
    """Factors of a parameter's settings.

    Attributes:
        lr: factor of the learning rate.
        weight_decay: factor of the weight decay.
        fallback: train the parameter with the fallback of an optimizer for matrices, such as Muon's AdamW.
    """

    lr: float
    weight_decay: float = 1.0
    fallback: bool = False


class Rule(NamedTuple):
    """How an optimizer's settings for a spectrum depend on its factor f.

    Attributes:
        rate: the learning rate is multiplied by ``f**rate``.
        decay: the weight decay is divided by ``f**decay``.
        heads_fall_back: train the heads of the modulators with the optimizer's fallback.
    """

    rate: int = 1
    decay: int = 1
    heads_fall_back: bool = False


_ADAMW = Rule()  # steps of the same size in all elements, and decoupled weight decay
_RULES = {
    # Steps along the gradient; the decay is added to the gradient or multiplied by the learning rate.
    "sgd momentum nesterov sgdw nesterovw csgdw sgdc csgdc sgdp csgdp bnbsgd bnbsgd8bit fusedsgd": Rule(2, 2),
    # Steps of the same size in all elements, but the decay is added to the gradient first.
    "adam adamax nadam nadamlegacy radam radamlegacy adopt cadopt fusedadam bnbadam bnbadam8bit": Rule(1, 2),
    "adagrad adadelta rmsprop rmsproptf crmsproptf": Rule(1, 2),
    # Steps proportional to the norm of the weights.
    "lamb lambc clamb fusedlamb": Rule(0, 1),
    "lambw lambcw lambcd clambw": Rule(0, 0),
    "lars larc nlars nlarc": Rule(0, 2),
    # Steps are orthogonal matrices scaled to the size of Adam's steps; through a spectrum, the step of the plane is
    # nearly orthogonal, too. Heads, like other last layers, use the AdamW that these optimizers contain.
    "muon nmuon adamuon nadamuon": Rule(1, 1, heads_fall_back=True),
}
_RULE_OF = {name: rule for names, rule in _RULES.items() for name in names.split()}


def spectrum_change(fdw: FourierDisjointWeight, optimizer: str) -> Change:
    """Return the factors with which steps and weight decay change the kernel as much as that of a plain layer.

    Args:
        fdw: the module of the spectrum.
        optimizer: name of the optimizer, as in timm.
    """
    out_channels, in_channels, height, width = fdw.kernel_shape
    factor = math.sqrt(out_channels * height * in_channels * width / 2) / fdw.scale
    name, rule = _find_rule(optimizer)
    rate = factor**rule.rate
    return Change(rate, factor**-rule.decay / _extra_decay(name, rate))


def head_change(weight: Tensor, optimizer: str) -> Change:
    """Return the factors with which a step moves a modulator's logits equally far for any fan_in.

    Args:
        weight: (features out, ...); the sizes of the other axes multiply to fan_in.
        optimizer: name of the optimizer, as in timm.
    """
    name, rule = _find_rule(optimizer)
    rate = min(2 / weight[0].numel(), 1.0) if rule.rate else 1.0
    return Change(rate, 1 / (rate * _extra_decay(name, rate)), rule.heads_fall_back)


def _find_rule(optimizer: str) -> tuple[str, Rule]:
    name = optimizer.lower().split("_")[-1]  # timm writes "lookahead_adamw"
    return name, _RULE_OF.get(name, _ADAMW)


def _extra_decay(name: str, rate: float) -> float:
    """Extra factor of the weight decay: timm's "corrected" decay is multiplied by the learning rate twice."""
    try:
        defaults = get_optimizer_info(name).defaults or {}
    except ValueError:
        return 1.0  # not timm's
    return rate if defaults.get("corrected_weight_decay") else 1.0
