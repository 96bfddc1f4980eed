"""Losses of per-pixel scores. Ignored pixels do not contribute; if all pixels are ignored, the loss is 0."""

import torch.nn.functional as F
from segmentation_models_pytorch.losses import DiceLoss
from torch import Tensor

from fdconv_zoo.dense.segmentation.classes import IGNORE

_dice = DiceLoss("multiclass", ignore_index=IGNORE)


def cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
    """Compute the mean cross-entropy, in nats, over the pixels that are not ignored.

    Args:
        logits: Scores (B, K, H, W).
        masks: Class indices or `IGNORE`, (B, H, W).
    """
    total = F.cross_entropy(logits.float(), masks, ignore_index=IGNORE, reduction="sum")
    return total / (masks != IGNORE).sum().clamp_min(1)


def dice(logits: Tensor, masks: Tensor) -> Tensor:
    """Compute the Dice loss: 1 - Dice coefficient of each class over the whole batch, averaged over all classes.

    The loss of a class that does not occur in the batch is 0.

    Args:
        logits: Scores (B, K, H, W).
        masks: Class indices or `IGNORE`, (B, H, W).
    """
    return _dice(logits.float(), masks)
