"""Losses of per-pixel scores. Ignored pixels do not contribute; if all pixels are ignored, the loss is 0."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.losses import DiceLoss, FocalLoss, LovaszLoss
from torch import Tensor, nn

from fdconv_zoo.dense.segmentation.classes import IGNORE
from fdconv_zoo.errors import ConfigError

_dice = DiceLoss("multiclass", ignore_index=IGNORE)
_focal = FocalLoss("multiclass", ignore_index=IGNORE)
_lovasz = LovaszLoss("multiclass", ignore_index=IGNORE)


class PixelLosses(nn.Module):
    """A weighted choice of losses; a loss with weight 0 is not computed.

    Args:
        num_classes: Number of classes K.
        ce_weight, dice_weight, focal_weight, lovasz_weight: Weights of the losses.
        class_weights: Weights of the K classes in the cross-entropy.
        hard_pixels: As in `cross_entropy`.

    Raises:
        ConfigError: all losses have weight 0, `class_weights` are not K numbers of at least 0, `hard_pixels` is not
            above 0 and at most 1, or one of the two is set although the cross-entropy has weight 0.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        ce_weight: float = 1.0,
        dice_weight: float = 0.0,
        focal_weight: float = 0.0,
        lovasz_weight: float = 0.0,
        class_weights: Sequence[float] | None = None,
        hard_pixels: float = 1.0,
    ) -> None:
        super().__init__()
        weights = {"cross_entropy": ce_weight, "dice": dice_weight, "focal": focal_weight, "lovasz": lovasz_weight}
        self.weights = {name: weight for name, weight in weights.items() if weight}
        if not self.weights:
            raise ConfigError(f"the weights of {', '.join(weights)} are all 0: there is no loss to train with")
        if class_weights is not None and (len(class_weights) != num_classes or min(class_weights) < 0):
            raise ConfigError(f"class_weights {list(class_weights)}: must be {num_classes} numbers of at least 0")
        if not 0 < hard_pixels <= 1:
            raise ConfigError(f"hard_pixels {hard_pixels}: must be above 0 and at most 1")
        if not ce_weight and (class_weights is not None or hard_pixels < 1):
            raise ConfigError("class_weights and hard_pixels belong to the cross-entropy, whose weight is 0")
        self.hard_pixels = hard_pixels
        weights_of_classes = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights_of_classes, persistent=False)

    def forward(self, logits: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """Compute the weighted losses by name.

        Args:
            logits: Scores (B, K, H, W).
            masks: Class indices or `IGNORE`, (B, H, W).
        """
        losses = {
            "cross_entropy": partial(cross_entropy, class_weights=self.class_weights, hard_pixels=self.hard_pixels),
            "dice": dice,
            "focal": focal,
            "lovasz": lovasz,
        }
        return {name: weight * losses[name](logits, masks) for name, weight in self.weights.items()}


def cross_entropy(
    logits: Tensor, masks: Tensor, class_weights: Tensor | None = None, hard_pixels: float = 1.0
) -> Tensor:
    """Compute the mean cross-entropy, in nats, over the pixels that are not ignored.

    Args:
        logits: Scores (B, K, H, W).
        masks: Class indices or `IGNORE`, (B, H, W).
        class_weights: Weights of the classes, (K,); the mean is weighted by them.
        hard_pixels: Share of the labelled pixels of the batch that count, above 0: those with the largest loss (online
            hard example mining, https://arxiv.org/abs/1604.03540).
    """
    labelled = masks != IGNORE
    weights = labelled if class_weights is None else class_weights[masks.where(labelled, 0)] * labelled
    if hard_pixels == 1:
        loss = F.cross_entropy(logits.float(), masks, class_weights, ignore_index=IGNORE, reduction="sum")
    else:
        losses = F.cross_entropy(logits.float(), masks, class_weights, ignore_index=IGNORE, reduction="none")
        losses, hardest = losses.flatten().topk(max(round(hard_pixels * int(labelled.sum())), 1))
        loss, weights = losses.sum(), weights.flatten()[hardest]
    total = weights.sum()
    return loss / total.where(total > 0, 1)


def dice(logits: Tensor, masks: Tensor) -> Tensor:
    """Compute the Dice loss: 1 - Dice coefficient of each class over the whole batch, averaged over all classes.

    The loss of a class that does not occur in the batch is 0.

    Args:
        logits: Scores (B, K, H, W).
        masks: Class indices or `IGNORE`, (B, H, W).
    """
    return _dice(logits.float(), masks)


def focal(logits: Tensor, masks: Tensor) -> Tensor:
    """Compute the focal loss (https://arxiv.org/abs/1708.02002, gamma 2) of each class against the others, averaged.

    Args:
        logits: Scores (B, K, H, W).
        masks: Class indices or `IGNORE`, (B, H, W).
    """
    return _or_zero(_focal, logits, masks)


def lovasz(logits: Tensor, masks: Tensor) -> Tensor:
    """Compute the Lovász-softmax loss (https://arxiv.org/abs/1705.08790) over the classes that occur in the batch.

    Args:
        logits: Scores (B, K, H, W).
        masks: Class indices or `IGNORE`, (B, H, W).
    """
    return _or_zero(_lovasz, logits, masks)


def _or_zero(loss: nn.Module, logits: Tensor, masks: Tensor) -> Tensor:
    """Compute a loss; 0, with gradients, if no pixel is labelled, where the library would average over no pixels."""
    logits = logits.float()
    return loss(logits, masks) if (masks != IGNORE).any() else 0 * logits.sum()
