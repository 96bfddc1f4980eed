"""What FDConv's layers ask of their input."""

from torch import Tensor


def check_input(x: Tensor, channels: int, *, channel_dim: int, ndims: tuple[int, ...], layout: str) -> None:
    """Check that an input is a non-empty batch of floating type with the right number of channels.

    Args:
        x: the input.
        channels: that it must have.
        channel_dim: the axis of the channels.
        ndims: numbers of axes that it may have.
        layout: names of its axes, for the messages.

    Raises:
        ValueError: no batch, another number of channels, or an empty input.
        TypeError: not of a floating type.
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
