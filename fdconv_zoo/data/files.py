"""Finds the image files below a folder, and reports the other files."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

from PIL import Image

from fdconv_zoo.errors import DataError, first_of

_logger = logging.getLogger(__name__)

_SYSTEM_FILES = ("thumbs.db", "desktop.ini")  # Windows creates them in folders of pictures


@cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes of the formats that Pillow reads, in lower case and with the dot."""
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN)


def sub_folders(folder: Path) -> list[Path]:
    """Return the visible sub-folders, also linked ones, in alphabetical order; empty if `folder` does not exist."""
    if not folder.is_dir():
        return []
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def find_images(folder: Path, *, recursive: bool = True) -> tuple[list[Path], list[Path]]:
    """List the visible files of a folder in alphabetical order, following links.

    Args:
        folder: Where to look.
        recursive: Also search sub-folders.

    Returns:
        The images, and the other files. A file with an unknown suffix, or without one, is an image if Pillow
        recognizes its content.

    Raises:
        DataError: a name is not valid UTF-8.
    """
    images, others = [], []
    for path in sorted(_walk(str(folder), recursive, ())):
        file = Path(path)
        (images if _is_image(file) else others).append(file)
    return images, others


def has_images(folder: Path, *, recursive: bool = True) -> bool:
    """Return whether `find_images` would find one, without reading the whole folder."""
    return any(map(_is_image, map(Path, _walk(str(folder), recursive, ()))))


def report_left_out(folder: Path, what: str, files: Sequence[Path]) -> None:
    """Log the number of files left out, by suffix, and the first of them."""
    if files:
        kinds = Counter(file.suffix.lower() or "without a suffix" for file in files)
        _logger.warning(
            "%s: left out %d files %s (%s): %s.",
            folder,
            len(files),
            what,
            ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()),
            first_of(_relative(files, folder)),
        )


def _relative(files: Iterable[Path], folder: Path) -> Iterator[str]:
    return (os.path.relpath(file, folder) for file in files)


def _walk(folder: str, recursive: bool, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Yield visible files. `above` identifies the parent folders, because links can be circular."""
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in _SYSTEM_FILES:
                continue
            if not entry.is_dir():
                yield _check_name(entry.path)
            elif recursive:
                yield from _walk(entry.path, recursive, (*above, here))


def _check_name(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise DataError(f"{path!a}: the name is not valid UTF-8. Rename this file or the folders around it.") from None
    return path


def _is_image(file: Path) -> bool:
    if not file.is_file():
        return False  # a broken link, a pipe
    if file.suffix.lower() in image_suffixes():
        return True
    try:
        with Image.open(file):
            return True
    except Image.DecompressionBombError:
        return True  # reported when images are checked
    except OSError:
        return False
