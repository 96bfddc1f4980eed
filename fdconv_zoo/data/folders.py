"""Reads images whose classes are the names of their folders."""

import logging
from dataclasses import dataclass
from pathlib import Path

from fdconv_zoo.data.files import find_images, has_images, report_left_out, sub_folders
from fdconv_zoo.data.listings import METADATA_FILES
from fdconv_zoo.data.splits import SPLIT_NAME, TRAIN_NAMES
from fdconv_zoo.errors import DataError, first_of

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassFolders:
    """A folder with one sub-folder per class. Images anywhere below it belong to the class.

    Attributes:
        folder: The folder.
        children: Its sub-folders that contain images.
    """

    folder: Path
    children: list[Path]

    @property
    def doubtful(self) -> bool:
        """Whether the sub-folders may not be classes: there is only one, or one has the name of a split."""
        return len(self.children) < 2 or any(SPLIT_NAME.match(child.name) for child in self.children)

    def list_images(self) -> list[tuple[str, str]]:
        """Return path and class of every image, and log what is left out.

        Raises:
            DataError: the sub-folders look like splits, or the classes are one level further down.
        """
        found = {child: find_images(child) for child in self.children}
        self._check_level(
            [child for child, (images, _) in found.items() if all(file.parent != child for file in images)]
        )
        self._report(found)
        # The order in which `datasets` sorts a folder: the images held out for validation depend on it.
        return sorted((str(image), child.name) for child, (images, _) in found.items() for image in images)

    def _check_level(self, outer: list[Path]) -> None:
        """Raise DataError if folders without images of their own look like splits, or contain the class folders."""
        if len(self.children) == 1 and outer and len(sub_folders(outer[0])) > 1:
            raise DataError(
                f"{self.folder}: its only folder with images is {outer[0].name}, which has folders inside. If they are "
                f"the classes, choose {outer[0]}."
            )
        like_splits = [child.name for child in outer if SPLIT_NAME.match(child.name)]
        like_training = [name for name in like_splits if name.lower().startswith(TRAIN_NAMES)]
        if like_training or len(like_splits) == len(self.children):
            raise DataError(
                f"{self.folder}: {first_of(like_splits)} have the names of splits, with folders inside. Rename them to "
                "train and validation, or to the classes that they are."
            )

    def _report(self, found: dict[Path, tuple[list[Path], list[Path]]]) -> None:
        """Log files that are left out, and folders that may be meant differently."""
        names = [child.name for child in self.children]
        if usual := [name for name in names if SPLIT_NAME.fullmatch(name)]:
            _logger.warning("%s: the folders %s are read as classes, not as splits.", self.folder, first_of(usual))
        if nested := [f"{child.name}/{inner.name}" for child in self.children for inner in sub_folders(child)]:
            _logger.warning(
                "%s: images in folders inside class folders belong to the outer one: %s.", self.folder, first_of(nested)
            )
        if empty := [child.name for child in sub_folders(self.folder) if child not in found]:
            _logger.warning("%s: left out folders without images: %s.", self.folder, first_of(empty))
        others = [file for _, files in found.values() for file in files]
        metadata = [file for file in others if file.name.lower() in METADATA_FILES]
        if metadata:
            _logger.warning("The folders are the classes. Not read: %s.", first_of(map(str, metadata)))
        report_left_out(self.folder, "that are not images", [file for file in others if file not in metadata])
        stray, _ = find_images(self.folder, recursive=False)
        report_left_out(self.folder, "beside the class folders", stray)


def find_class_folders(folder: Path) -> ClassFolders:
    """Find the sub-folders that contain images. Raises DataError if the name of a file is not valid UTF-8."""
    return ClassFolders(folder, [child for child in sub_folders(folder) if has_images(child)])
