"""BatchNorm for training with few images per device.

A backbone's BatchNorm averages over all positions of a batch. Recipes for detection freeze it, or average over all
devices. KSM's BatchNorm normalizes globally pooled features, so it averages over the images only: with two images, its
output only tells which of them is larger in each channel. If it were frozen like the others, it would not normalize at
all: in a network that has just been converted to FDConv, its statistics are the initial 0 and 1, so the inputs of the
modulators' last layers would be some 40 times smaller, and nearly the same for all images. Therefore, if the backbone's
norms are frozen, KSM's is replaced by a norm that normalizes with its running statistics.
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
    """Choose how the BatchNorm of a network behaves in training. The state dict and evaluation stay the same.

    Args:
        model: A backbone, changed in place. Do not pass a whole network: a newly initialized decoder must not be
            frozen.
        norm: ``"batch"``: nothing is changed. ``"frozen"``: each norm keeps its statistics and parameters, for
            pretrained weights; KSM's becomes a `RunningNorm`. Train with `fdconv_zoo.training.tuning.train_mode`:
            ``train`` alone would unfreeze the norms. ``"sync"``: all norms, also KSM's, use statistics over the images
            of all processes, which should be 16 or more.

    Raises:
        ConfigError: `norm` is unknown, or ``"sync"`` is used with several processes that are not on GPUs.
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
    """BatchNorm that also normalizes with its running statistics in training, for batches of any size, even one image.

    Maps (B, C, H, W) to the same shape. The statistics are the average over all batches so far, and after 100 batches a
    moving average; no gradient flows through them. With several processes, those of the first process are used,
    because torch broadcasts buffers. The state dict and evaluation are those of ``nn.BatchNorm2d``.

    Args:
        num_features, eps, momentum: As in ``nn.BatchNorm2d``.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.01) -> None:
        super().__init__(num_features, eps, momentum)

    @classmethod
    def from_batch_norm(cls, norm: _BatchNorm) -> "RunningNorm":
        """Build a norm that shares parameters and statistics with another norm."""
        running = cls(norm.num_features, norm.eps)
        running._parameters, running._buffers = dict(norm._parameters), dict(norm._buffers)
        return running.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (B, C, H, W) to the same shape."""
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
        # Around the new running mean: the variance within a batch is zero for a single image.
        self.running_var.lerp_(deviation.square().mean(1), share).sub_(step.square())
