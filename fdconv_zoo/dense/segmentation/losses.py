"""Losses of scores per pixel. Ignored pixels count for nothing, and where all are ignored, the loss is 0."""

import torch.nn.functional as F
from segmentation_models_pytorch.losses import DiceLoss
from torch import Tensor

from fdconv_zoo.dense.segmentation.classes import IGNORE

_dice = DiceLoss("multiclass", ignore_index=IGNORE)


def cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean cross-entropy, in nats, over the pixels that are not ignored.

    Args:
        logits: (B, K, H, W).
        masks: (B, H, W), class numbers or `IGNORE`.
    """
    total = F.cross_entropy(logits.float(), masks, ignore_index=IGNORE, reduction="sum")
    return total / (masks != IGNORE).sum().clamp_min(1)


def dice(logits: Tensor, masks: Tensor) -> Tensor:
    """One less the Dice coefficient of each class over the whole batch, mean over all classes; 0 for those not in it.

    Args:
        logits: (B, K, H, W).
        masks: (B, H, W), class numbers or `IGNORE`.
    """
    return _dice(logits.float(), masks)
