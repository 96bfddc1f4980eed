"""Checks of the input of a layer or a model."""

from torch import Tensor


def check_input(x: Tensor, channels: int, *, channel_dim: int, ndims: tuple[int, ...], layout: str) -> None:
    """Check that x is a non-empty batch of floating type with the right number of axes and channels.

    Args:
        x: the input.
        channels: expected along ``channel_dim``.
        channel_dim: the axis of the channels.
        ndims: the numbers of axes that are allowed.
        layout: the axes' names, for the message.

    Raises:
        ValueError: the shape is wrong.
        TypeError: the dtype is not floating.
    """
    shape = tuple(x.shape)
    if x.ndim not in ndims:
        raise ValueError(
            f"Input of shape {shape}: expected a batch {layout}. For a single image add a batch axis: x[None]."
        )
    if x.shape[channel_dim] != channels:
        raise ValueError(
            f"Input of shape {shape}: expected {channels} channels in {layout}, got {x.shape[channel_dim]}."
        )
    if x.numel() == 0:
        raise ValueError(f"Input of shape {shape} is empty: FDConv needs at least one image and one position.")
    if not x.is_floating_point():
        raise TypeError(f"Input of type {x.dtype}: expected a floating type; convert it with x.float().")
