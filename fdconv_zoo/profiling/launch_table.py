"""The table of launches: their number and the bytes that they move, also as multiples of the plain model's."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fdconv_zoo.profiling.launches import Launches, count_launches

LISTED = 10  # operations named under the table


def count_rows(
    models: Mapping[str, nn.Module], x: Tensor, *, dtype: torch.dtype, training: bool
) -> Iterator[dict[str, Any]]:
    """Count the launches of models; yield one row each, with ratios to the first.

    Args:
        models, x, dtype, training: as in :func:`count_launches`.
    """
    plain = None
    for name, model in models.items():
        forward, backward = count_launches(model, x, dtype=dtype, training=training)
        total, total_bytes = forward.total + backward.total, forward.total_bytes + backward.total_bytes
        plain = plain or (total, total_bytes)
        yield {
            "model": name,
            "batch_size": x.shape[0],
            "image_size": f"{x.shape[2]}x{x.shape[3]}",
            "launches_forward": forward.total,
            "launches_backward": backward.total,
            "launches": total,
            "launches_ratio": total / plain[0],
            "bytes_forward": forward.total_bytes,
            "bytes_backward": backward.total_bytes,
            "bytes": total_bytes,
            "bytes_ratio": total_bytes / plain[1],
            "most_launched": _most_launched(forward, backward),
        }


def launch_header(name_width: int) -> str:
    """Format the first line of the table."""
    launches = f"{'forward':>8}  {'backward':>8}  {'launches':>8}  {'x':>5}"
    return f"{'model':<{name_width}}  batch  {'image':>9}  {launches}  {'fwd/GB':>7}  {'bwd/GB':>7}  {'x':>5}"


def launch_line(row: Mapping[str, Any], name_width: int) -> str:
    """Format a row of the table."""
    launches = f"{row['launches_forward']:>8}  {row['launches_backward']:>8}  {row['launches']:>8}"
    moved = f"{row['bytes_forward'] / 1e9:>7.2f}  {row['bytes_backward'] / 1e9:>7.2f}  {row['bytes_ratio']:>5.2f}"
    setting = f"{row['model']:<{name_width}}  {row['batch_size']:>5}  {row['image_size']:>9}"
    return f"{setting}  {launches}  {row['launches_ratio']:>5.2f}  {moved}"


def _most_launched(forward: Launches, backward: Launches) -> str:
    return ", ".join(f"{name} {count}" for name, count in (forward.count + backward.count).most_common(LISTED))
