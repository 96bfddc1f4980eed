"""The paths that the hot operations can take. All compute the same."""

from typing import Any, Literal, NoReturn

import torch

Path = Literal["plain", "rebuild"]

# Older versions of torch cannot tell an export from a compilation.
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def choose_path(forced: Path | None) -> Path:
    """The path to take; the choice is made here and nowhere else.

    ``"rebuild"``: image by image, kernels and bands rebuilt in backward; the fastest on a CPU and the leanest
    everywhere. ``"plain"``: torch's own operations on the whole batch, which exported programs must consist of.
    """
    if forced is not None:
        return forced
    return "plain" if _is_exporting() or torch.jit.is_tracing() else "rebuild"


def is_free(size: Any) -> bool:
    """Whether a size is left open by the program being exported or traced."""
    return not isinstance(size, int)


def refuse_second_derivative(ctx: Any, *grads: Any) -> NoReturn:
    """Backward of the backward of what is rebuilt.

    Raises:
        RuntimeError: always; names the path that can be differentiated twice.
    """
    raise RuntimeError(
        "An FDConv layer that rebuilds its kernels cannot be differentiated twice. Call "
        'fdconv_zoo.set_path(model, "plain") first; it takes more memory.'
    )
