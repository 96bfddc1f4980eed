"""Layouts of folders of images and masks: plain pairs of files, ADE20K and Cityscapes."""

import logging
from dataclasses import dataclass
from glob import escape, glob
from pathlib import Path

from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from fdconv_zoo.data.files import sub_folders
from fdconv_zoo.data.splits import TRAIN_NAMES, VALIDATION_NAMES
from fdconv_zoo.dense.segmentation.classes import Classes, ade20k_classes, cityscapes_classes
from fdconv_zoo.errors import DataError, listed

_logger = logging.getLogger(__name__)

_TRAIN_IDS, _LABEL_IDS = "_gtFine_labelTrainIds", "_gtFine_labelIds"


@dataclass(frozen=True)
class Layout:
    """Locations of a dataset's files.

    Attributes:
        splits: Folder of images and folder of masks of each split.
        endings: Endings of the file stems of images and masks, after the part that partners share.
        classes: Classes of the mask values; None if the dataset does not define them.
        names_file: File with the class names in the order of the mask values; None if there is no such file.
    """

    splits: dict[str, tuple[Path, Path]]
    endings: tuple[str, str] = ("", "")
    classes: Classes | None = None
    names_file: Path | None = None

    def pairs(self, split: str) -> list[tuple[Path, Path]]:
        """Return the images of a split with their masks. Raises DataError for no files, or files without a partner."""
        folders = self.splits[split]
        images, masks = (_files_by_name(*pair) for pair in zip(folders, self.endings, strict=True))
        if images.keys() != masks.keys():
            unmasked = [str(images[name]) for name in sorted(images.keys() - masks.keys())]
            unmatched = [str(masks[name]) for name in sorted(masks.keys() - images.keys())]
            raise DataError(
                f"{len(unmasked)} images without a mask{listed(unmasked)}\n{len(unmatched)} masks without an image"
                f"{listed(unmatched)}\nPartners have the same name except for {self._endings()}. Add the missing "
                "files, or remove the extras."
            )
        if not images:
            raise DataError(f"{folders[0]}: no images found. Put the images of split {split!r} there.")
        return [(images[name], masks[name]) for name in images]

    def _endings(self) -> str:
        return " and ".join(f"*{ending}.*" for ending in self.endings) if any(self.endings) else "the suffix"


def _files_by_name(folder: Path, ending: str) -> dict[str, Path]:
    """Find image files recursively. Keys are paths relative to `folder`, without ending and suffix."""
    files: dict[str, Path] = {}
    for path in map(Path, sorted(glob(f"{escape(str(folder))}/**/*", recursive=True))):
        if path.suffix.lower() in ImageFolder.EXTENSIONS and path.stem.endswith(ending) and path.is_file():
            name = str(path.relative_to(folder).with_suffix("")).removesuffix(ending)
            if name in files:
                raise DataError(f"{files[name]} and {path} differ only in their suffix. Remove one of them.")
            files[name] = path
    return files


def find_layout(folder: Path) -> Layout | None:
    """Detect the layout of a dataset from its sub-folders; None if it is not a known one."""
    folder = folder.resolve()
    for find in (_cityscapes, _ade20k, _pairs):
        if layout := find(folder):
            return layout
    return None


def _cityscapes(folder: Path) -> Layout | None:
    splits = _common_splits(folder / "leftImg8bit", folder / "gtFine")
    if not splits:
        return None
    label_ids, train_ids = ({*_files_by_name(folder / "gtFine", ending)} for ending in (_LABEL_IDS, _TRAIN_IDS))
    use_train_ids = bool(train_ids) and train_ids >= label_ids
    return Layout(
        splits,
        ("_leftImg8bit", _TRAIN_IDS if use_train_ids else _LABEL_IDS),
        cityscapes_classes(train_ids=use_train_ids),
    )


def _ade20k(folder: Path) -> Layout | None:
    splits = _common_splits(folder / "images", folder / "annotations")
    object_info = folder / "objectInfo150.txt"
    if not splits or ("training" not in splits and not object_info.is_file()):
        return None
    if not object_info.is_file():
        _logger.warning("%s is missing: the classes are named by their numbers.", object_info)
    return Layout(splits, classes=ade20k_classes(object_info if object_info.is_file() else None))


def _pairs(folder: Path) -> Layout | None:
    names_file = folder / "classes.txt"
    images, masks = folder / "images", folder / "masks"
    splits = _common_splits(images, masks) | {
        child.name: (child / "images", child / "masks")
        for child in sub_folders(folder)
        if (child / "images").is_dir() and (child / "masks").is_dir()
    }
    if not any(name.lower() in TRAIN_NAMES + VALIDATION_NAMES for name in splits):
        splits = {"train": (images, masks)} if images.is_dir() and masks.is_dir() else {}
    return Layout(splits, names_file=names_file if names_file.is_file() else None) if splits else None


def _common_splits(images: Path, masks: Path) -> dict[str, tuple[Path, Path]]:
    """Return the sub-folders that exist in both, and log those that exist in only one."""
    image_splits, mask_splits = ({child.name for child in sub_folders(folder)} for folder in (images, masks))
    both = sorted(image_splits & mask_splits)
    if both and (lone := sorted(image_splits ^ mask_splits)):
        _logger.warning("Ignored, because they are not in both %s and %s: %s.", images, masks, lone)
    return {name: (images / name, masks / name) for name in both}
