"""Transforms of torchvision and albumentations by name, for `--transforms`."""

import ast
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from fdconv_zoo.errors import ConfigError

Transform = Callable[[Image.Image], Image.Image]

FORM = "torchvision.NAME(ARGUMENT=VALUE, ...) or albumentations.NAME(ARGUMENT=VALUE, ...)"


def named_transform(words: str) -> Transform:
    """Build a transform from words such as ``torchvision.GaussianBlur(kernel_size=3)``.

    No code in `words` is executed: arguments must be literals, and the name must be that of a transform.

    Args:
        words: A class of torchvision.transforms.v2 or of albumentations, with its arguments.

    Returns:
        A function from an image to an image. Its randomness depends on the global seeds only.

    Raises:
        ConfigError: there is no such transform, or it does not take these arguments.
    """
    library, name, arguments, keywords = _parse(words)
    try:
        if library == "torchvision":
            return _torchvision_class(name)(*arguments, **keywords)
        return _Albumentation(_albumentations_class(name)(*arguments, **keywords))
    except ConfigError as error:
        raise ConfigError(f"--transforms {words}: {error}") from error
    except Exception as error:  # raised by the libraries' own checks of arguments
        reason = " ".join(str(error).split())
        raise ConfigError(f"--transforms {words}: {library} does not take these arguments ({reason:.300})") from error


def check_transform(words: str, transform: Transform, mode: str, size: tuple[int, int]) -> None:
    """Try a transform on a black image.

    Args:
        words: The transform as the user wrote it, for the message.
        transform: The transform.
        mode: "RGB" or "L".
        size: Width and height.

    Raises:
        ConfigError: the transform fails, or changes the size, mode or type of the image.
    """
    try:
        result = transform(Image.new(mode, size))
    except Exception as error:  # whatever the libraries raise
        reason = " ".join(str(error).split())
        raise ConfigError(f"--transforms {words}: it fails on an image of mode {mode} ({reason:.300})") from error
    if not isinstance(result, Image.Image) or (result.mode, result.size) != (mode, size):
        raise ConfigError(f"--transforms {words}: must keep size, channels and type of an image; use another one")


def _parse(words: str) -> tuple[str, str, list[Any], dict[str, Any]]:
    try:
        match ast.parse(words.strip(), mode="eval").body:
            case ast.Call(ast.Attribute(ast.Name("torchvision" | "albumentations" as library), name), values, keywords):
                arguments = [ast.literal_eval(value) for value in values]
                return library, name, arguments, {str(pair.arg): ast.literal_eval(pair.value) for pair in keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pass
    raise ConfigError(f"--transforms {words}: must be {FORM}, with numbers, texts and tuples as values")


def _torchvision_class(name: str) -> type:
    from torchvision.transforms import v2

    found = getattr(v2, name, None)
    if not (isinstance(found, type) and issubclass(found, v2.Transform)):
        raise ConfigError("torchvision.transforms.v2 has no such transform")
    return found


def _albumentations_class(name: str) -> type:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import looks for newer versions on the network
    try:
        import albumentations
    except ImportError as error:
        raise ConfigError(f"it needs {error.name or error}: pip install 'albumentations>=2'") from error
    found = getattr(albumentations, name, None)
    if not (isinstance(found, type) and issubclass(found, albumentations.BasicTransform)):
        raise ConfigError("albumentations has no such transform")
    if not hasattr(found, "set_random_seed"):
        raise ConfigError("this version of albumentations cannot be seeded: pip install 'albumentations>=2'")
    return found


class _Albumentation:
    """A transform of albumentations. Its own random generators are seeded from torch's at every call."""

    def __init__(self, transform: Any):
        self.transform = transform

    def __call__(self, image: Image.Image) -> Image.Image:
        self.transform.set_random_seed(int(torch.randint(2**31, ())))
        return Image.fromarray(self.transform(image=np.asarray(image))["image"])
