"""BatchNorm where a device has only a few images, and KSM's with it.

A backbone's BatchNorm averages over all positions of a batch; recipes for detection freeze it, or average over all
devices. KSM's averages over the images alone, as it normalizes pooled features: of two images it tells which is the
larger in each channel, and nothing else. Frozen with the others it would not normalize at all: beside a network that
is new to FDConv, its statistics are the 0 and 1 of a fresh layer, and what the modulators' last layers see is some 40
times smaller and nearly the same for all images. So where the backbone is frozen, KSM follows what passes.
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
    """Choose what the BatchNorm of a network does in training; its state dict and what it does afterwards stay.

    Args:
        model: Changed in place. A decoder that starts fresh must not be frozen: give the backbone.
        norm: ``"batch"``: nothing is changed. ``"frozen"``: the backbone's keeps its statistics and parameters, for
            weights that were trained before; KSM's becomes a `RunningNorm`. ``"sync"``: both have the statistics of all
            processes' images, which are to be 16 or more. Train with `fdconv_zoo.training.tuning.train_mode`: ``train``
            alone would thaw what is frozen.

    Raises:
        ConfigError: no such choice, or one that the devices cannot follow.
    """
    if norm not in NORMS:
        raise ConfigError(f"norm {norm}: no such choice; there are {', '.join(NORMS)}")
    if norm == "sync":
        if dist.is_available() and dist.is_initialized() and dist.get_backend() == "gloo":
            raise ConfigError("norm sync: torch's SyncBatchNorm needs GPUs where there are several processes")
        convert_sync_batchnorm(model)
    elif norm == "frozen":
        follow_statistics(model)
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.requires_grad_(False).eval()


def follow_statistics(model: nn.Module) -> None:
    """Make every KSM's norm a `RunningNorm`, with its parameters and statistics."""
    for module in model.modules():
        if isinstance(module, GlobalBranch) and isinstance(module.norm, _BatchNorm):
            module.norm = RunningNorm.from_batch_norm(module.norm)


class RunningNorm(_NormBase):
    """BatchNorm that normalizes with its running statistics in training, too: with batches of any size, even one image.

    (B, C, H, W) to the same shape. The statistics are those of all that has passed, and from 100 batches on a moving
    average; no gradient goes through them. Of several processes the first one's images count, as torch shares buffers.
    In evaluation it is the ``nn.BatchNorm2d`` whose state dict it has.

    Args:
        num_features, eps, momentum: As in ``nn.BatchNorm2d``.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.01) -> None:
        super().__init__(num_features, eps, momentum)

    @classmethod
    def from_batch_norm(cls, norm: _BatchNorm) -> "RunningNorm":
        """One with the parameters and the statistics of another, not copies."""
        running = cls(norm.num_features, norm.eps)
        running._parameters, running._buffers = dict(norm._parameters), dict(norm._buffers)
        return running.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        if self.training:
            self._follow(x.detach())
        # Copies: another forward pass may move the originals before this one's gradient is taken.
        return F.batch_norm(
            x, self.running_mean.clone(), self.running_var.clone(), self.weight, self.bias, eps=self.eps
        )

    def _follow(self, x: Tensor) -> None:
        self.num_batches_tracked += 1
        share = (1 / self.num_batches_tracked).clamp(min=self.momentum).to(x.dtype)  # of this batch in what has passed
        deviation = x.transpose(0, 1).flatten(1) - self.running_mean[:, None]
        step = share * deviation.mean(1)
        self.running_mean += step
        # Around the new mean; a batch's own variance would do for many images, but of one it is zero.
        self.running_var.lerp_(deviation.square().mean(1), share).sub_(step.square())
