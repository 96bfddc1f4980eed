"""BatchNorm for training with few images per device.

A backbone's BatchNorm averages over all positions of a batch. Recipes for detection freeze it, or average over all
devices. KSM's BatchNorm averages over the images alone, as it normalizes pooled features: for two images, all that is
left is which of them is larger in each channel. Frozen like the others it would not normalize at all: in a network that
is new to FDConv, its statistics are the 0 and 1 of a fresh layer, so that the modulators' last layers would see inputs
some 40 times smaller, and nearly the same for all images. So where the backbone's norms are frozen, KSM's is replaced
by one that normalizes with its running statistics.
"""

import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from fdconv_zoo.errors import ConfigError
from fdconv_zoo.layers.ksm import GlobalBranch

NORMS = ("batch", "frozen", "sync")


def set_norm(model: nn.Module, norm: str) -> None:
    """Choose what the BatchNorm of a network does in training. Its state dict and its evaluation stay the same.

    Args:
        model: A backbone, changed in place. Not a whole network: a decoder that starts fresh must not be frozen.
        norm: ``"batch"``: nothing is changed. ``"frozen"``: each norm keeps its statistics and parameters, for weights
            that were trained before; KSM's becomes a `RunningNorm`. ``"sync"``: both use the statistics of all
            processes' images, of which there should be 16 or more. Train with `fdconv_zoo.training.tuning.train_mode`:
            ``train`` alone would unfreeze the norms.

    Raises:
        ConfigError: no such choice, or the devices do not support it.
    """
    if norm not in NORMS:
        raise ConfigError(f"norm {norm}: no such choice; there are {', '.join(NORMS)}")
    if norm == "sync":
        if dist.is_available() and dist.is_initialized() and dist.get_backend() == "gloo":
            raise ConfigError("norm sync: with several processes, torch's SyncBatchNorm needs GPUs")
        convert_sync_batchnorm(model)
    elif norm == "frozen":
        follow_statistics(model)
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.requires_grad_(False).eval()


def follow_statistics(model: nn.Module) -> None:
    """Replace every KSM's norm by a `RunningNorm` with its parameters and statistics."""
    for module in model.modules():
        if isinstance(module, GlobalBranch) and isinstance(module.norm, _BatchNorm):
            module.norm = RunningNorm.from_batch_norm(module.norm)


class RunningNorm(_NormBase):
    """BatchNorm that normalizes with its running statistics in training, too: for batches of any size, even one image.

    (B, C, H, W) to the same shape. The statistics are those of all images so far, and after 100 batches a moving
    average; no gradient goes through them. With several processes, those of the first one count, as torch broadcasts
    buffers. The state dict and evaluation are those of ``nn.BatchNorm2d``.

    Args:
        num_features, eps, momentum: As in ``nn.BatchNorm2d``.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.01) -> None:
        super().__init__(num_features, eps, momentum)

    @classmethod
    def from_batch_norm(cls, norm: _BatchNorm) -> "RunningNorm":
        """Build one that shares parameters and statistics with another norm."""
        running = cls(norm.num_features, norm.eps)
        running._parameters, running._buffers = dict(norm._parameters), dict(norm._buffers)
        return running.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        if self.training:
            self._follow(x.detach())
        # Copies: another forward pass may change the originals before this one's backward pass.
        return F.batch_norm(
            x, self.running_mean.clone(), self.running_var.clone(), self.weight, self.bias, eps=self.eps
        )

    def _follow(self, x: Tensor) -> None:
        self.num_batches_tracked += 1
        share = (1 / self.num_batches_tracked).clamp(min=self.momentum).to(x.dtype)  # weight of this batch
        deviation = x.transpose(0, 1).flatten(1) - self.running_mean[:, None]
        step = share * deviation.mean(1)
        self.running_mean += step
        # Around the new mean: a batch's own variance would do for many images, but for one image it is zero.
        self.running_var.lerp_(deviation.square().mean(1), share).sub_(step.square())
