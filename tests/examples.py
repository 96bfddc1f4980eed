"""Runs the examples of a document, so that what users copy is what is tested; and what such tests share."""

import re
from pathlib import Path

from torch import Tensor, nn

DOCS = Path(__file__).resolve().parents[1] / "docs"


def run_examples(document: str, heading: str, **names: object) -> dict[str, object]:
    """Run the python blocks under a heading of a document in ``docs/``, one after another.

    Args:
        document: the file's name.
        heading: of the section, without its number signs.
        **names: that the blocks may use, and that stand for what a user has: a folder, a file.

    Returns:
        All names that are defined after the last block.
    """
    sections = re.split(r"^#+ (.+)\n", (DOCS / document).read_text(encoding="utf-8"), flags=re.MULTILINE)
    text = dict(zip(sections[1::2], sections[2::2], strict=True))[heading]
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert blocks, f"no examples under {heading!r}"
    scope = dict(names)
    for block in blocks:
        exec(compile(block, f"{document}: {heading}", "exec"), scope)
    return scope


def modulators(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that FDConv layers have beside plain ones, by name."""
    return {n: p for n, p in model.named_parameters() if any(part in n for part in (".fdw.", ".ksm.", ".fbm."))}


def open_residual_branches(model: nn.Module) -> None:
    """timm closes the branches of a fresh ResNet with a BatchNorm of weight 0, which lets no gradient through."""
    for name, module in model.named_modules():
        if name.endswith(".bn2"):
            module.weight.data.fill_(1)
