"""Runs the examples under a heading of a document, for tests of what they compute; and what such tests share."""

from run_blocks import ROOT, read_blocks, run_python
from torch import Tensor, nn

DOCS = ROOT / "docs"


def run_examples(document: str, heading: str, **names: object) -> dict[str, object]:
    """Run the python blocks under a heading of a document in ``docs/``, one after another.

    Args:
        document: the file's name.
        heading: of the section, without its number signs.
        **names: that the blocks may use, and that stand for what a user has: a folder, a file.

    Returns:
        All names that are defined after the last block.
    """
    page = DOCS / document
    blocks = [block for block in read_blocks(page) if block.language == "python" and block.heading == heading]
    assert blocks, f"no examples under {heading!r}"
    scope = dict(names)
    for block in blocks:
        run_python(block, page, scope)
    return scope


def modulators(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that FDConv layers have beside plain ones, by name."""
    return {n: p for n, p in model.named_parameters() if any(part in n for part in (".fdw.", ".ksm.", ".fbm."))}


def open_residual_branches(model: nn.Module) -> None:
    """timm closes the branches of a fresh ResNet with a BatchNorm of weight 0, which lets no gradient through."""
    for name, module in model.named_modules():
        if name.endswith(".bn2"):
            module.weight.data.fill_(1)
