"""Convert the names and shapes in the paper authors' checkpoints to ours (https://github.com/Linwei-Chen/FDConv)."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from fdconv_zoo.layers.fdw import cut_into_groups

_RENAMED = {
    "dft_weight": "fdw.spectrum",
    "KSM_Global.fc.": "ksm.global_branch.reduce.",
    "KSM_Global.bn.": "ksm.global_branch.norm.",
    "KSM_Global.relu.": "ksm.global_branch.act.",
    "KSM_Global.channel_fc.": "ksm.global_branch.channel.",
    "KSM_Global.filter_fc.": "ksm.global_branch.filter.",
    "KSM_Global.spatial_fc.": "ksm.global_branch.spatial.",
    "KSM_Global.kernel_fc.": "ksm.global_branch.kernel.",
    "KSM_Local.norm.": "ksm.local_branch.norm.",
    "KSM_Local.conv.": "ksm.local_branch.conv.",
}
_THEIRS = re.compile(r"^(?P<prefix>(?:.*\.)?)(?P<name>(?:dft_weight$|KSM_Global\.|KSM_Local\.|FBM\.).*)$")
_BAND_CONV = re.compile(r"^FBM\.freq_weight_conv_list\.(?P<band>\d+)\.(?P<kind>weight|bias)$")


def from_reference(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the authors' FDConv parameters to ours; all other entries pass unchanged.

    Args:
        state_dict: a single layer's, or a whole model's with any prefix.

    Returns:
        A new state dict for a layer or model of the same shape (its tensors share memory where they can), with a
        ``group_index`` for each layer: the authors' sort is not stable, so it may put coefficients of equal radius into
        other groups. Build the model with ``band_mask="reference"`` to compute what the checkpoint was trained with.

    Raises:
        ValueError: a parameter belongs to a variant of their layer that has no counterpart here.
    """
    result: dict[str, Tensor] = {}
    layers: list[str] = []
    band_convs: dict[str, dict[int, Tensor]] = {}
    for key, tensor in state_dict.items():
        theirs = _THEIRS.match(key)
        if theirs is None:
            result[key] = tensor
            continue
        prefix, name = theirs["prefix"], theirs["name"]
        if band := _BAND_CONV.match(name):
            band_convs.setdefault(f"{prefix}fbm.attention.{band['kind']}", {})[int(band["band"])] = tensor
            continue
        ours = next((ours + name.removeprefix(old) for old, ours in _RENAMED.items() if name.startswith(old)), None)
        if ours is None or (name == "dft_weight" and (tensor.ndim != 4 or len(tensor) != 1)):
            raise ValueError(
                f"The checkpoint's {key} of shape {tuple(tensor.shape)} belongs to a variant of the authors' layer "
                "that has no counterpart here: only their default layer can be converted."
            )
        if name == "dft_weight":
            layers.append(prefix)
            tensor = tensor[0]
        elif tensor.ndim == 4:  # their fully connected layers are 1x1 convolutions
            tensor = tensor.flatten(1)
        result[prefix + ours] = tensor
    for key, bands in band_convs.items():
        result[key] = torch.cat([bands[m] for m in sorted(bands)])
    for prefix in layers:
        kernel_head = result.get(prefix + "ksm.global_branch.kernel.bias")
        if kernel_head is not None:  # a single kernel has no head, and no groups
            rows, half_cols, _ = result[prefix + "fdw.spectrum"].shape
            result[prefix + "fdw.group_index"] = _reference_groups(rows, half_cols, len(kernel_head))
    return result


def _reference_groups(rows: int, half_cols: int, num_groups: int) -> Tensor:
    """The groups as the authors' code makes them at construction, with ties in the order of ``torch.sort``.

    Their planes have an even number of columns, 2 * (half_cols - 1).
    """
    u = torch.fft.fftfreq(rows, device="cpu")
    v = torch.fft.rfftfreq(2 * (half_cols - 1), device="cpu")
    radius = torch.stack(torch.meshgrid(u, v, indexing="ij"), dim=-1).norm(dim=-1)
    groups = cut_into_groups(radius.flatten().sort().indices.numpy(), num_groups)
    return torch.from_numpy(groups).view(rows, half_cols)
