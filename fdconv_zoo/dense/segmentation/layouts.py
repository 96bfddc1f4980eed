"""Folders of images and masks: pairs of files, ADE20K and Cityscapes as they are published."""

import logging
from dataclasses import dataclass
from glob import escape, glob
from pathlib import Path

from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from fdconv_zoo.data.splits import TRAIN_NAMES, VALIDATION_NAMES
from fdconv_zoo.dense.segmentation.classes import Classes, ade20k_classes, cityscapes_classes
from fdconv_zoo.errors import DataError, listed

_logger = logging.getLogger(__name__)

_TRAIN_IDS, _LABEL_IDS = "_gtFine_labelTrainIds", "_gtFine_labelIds"


@dataclass(frozen=True)
class Layout:
    """Where a dataset's files lie.

    Attributes:
        splits: their folders of images and of masks.
        endings: of the stems of images and of masks, after the part that partners share.
        classes: None where the masks' values are the class numbers.
        names_file: lists the classes in the order of these values; None where there is no such file.
    """

    splits: dict[str, tuple[Path, Path]]
    endings: tuple[str, str] = ("", "")
    classes: Classes | None = None
    names_file: Path | None = None

    def pairs(self, split: str) -> list[tuple[Path, Path]]:
        """The images of a split with their masks. Raises DataError for files without a partner, or no files."""
        folders = self.splits[split]
        images, masks = (_by_name(*place) for place in zip(folders, self.endings, strict=True))
        if images.keys() != masks.keys():
            maskless = [str(images[name]) for name in sorted(images.keys() - masks.keys())]
            imageless = [str(masks[name]) for name in sorted(masks.keys() - images.keys())]
            raise DataError(
                f"{len(maskless)} images without a mask{listed(maskless)}\n{len(imageless)} masks without an image"
                f"{listed(imageless)}\nPartners have the same name but for {self._endings()}. Add what is missing, or "
                "remove what is too much."
            )
        if not images:
            raise DataError(f"{folders[0]}: no images found. Put the images of split {split!r} there.")
        return [(images[name], masks[name]) for name in images]

    def _endings(self) -> str:
        return " and ".join(f"*{ending}.*" for ending in self.endings) if any(self.endings) else "the suffix"


def _by_name(folder: Path, ending: str) -> dict[str, Path]:
    """Image files, below folders too, by their path in `folder` without suffix and ending."""
    files: dict[str, Path] = {}
    for path in map(Path, sorted(glob(f"{escape(str(folder))}/**/*", recursive=True))):
        if path.suffix.lower() in ImageFolder.EXTENSIONS and path.stem.endswith(ending) and path.is_file():
            name = str(path.relative_to(folder).with_suffix("")).removesuffix(ending)
            if name in files:
                raise DataError(f"{files[name]} and {path} differ in their suffix only: which is it? Remove one.")
            files[name] = path
    return files


def find_layout(folder: Path) -> Layout | None:
    """Tells by its sub-folders how a dataset is laid out; None where it is in none of the known ways."""
    folder = folder.resolve()
    for find in (_cityscapes, _ade20k, _pairs):
        if layout := find(folder):
            return layout
    return None


def _cityscapes(folder: Path) -> Layout | None:
    splits = _partners(folder / "leftImg8bit", folder / "gtFine")
    if not splits:
        return None
    label_ids, train_ids = ({*_by_name(folder / "gtFine", ending)} for ending in (_LABEL_IDS, _TRAIN_IDS))
    use_train_ids = bool(train_ids) and train_ids >= label_ids
    return Layout(
        splits,
        ("_leftImg8bit", _TRAIN_IDS if use_train_ids else _LABEL_IDS),
        cityscapes_classes(train_ids=use_train_ids),
    )


def _ade20k(folder: Path) -> Layout | None:
    splits = _partners(folder / "images", folder / "annotations")
    object_info = folder / "objectInfo150.txt"
    if not splits or ("training" not in splits and not object_info.is_file()):
        return None
    if not object_info.is_file():
        _logger.warning("%s is missing, which names the classes: they are called by their numbers.", object_info)
    return Layout(splits, classes=ade20k_classes(object_info if object_info.is_file() else None))


def _pairs(folder: Path) -> Layout | None:
    names_file = folder / "classes.txt"
    images, masks = folder / "images", folder / "masks"
    splits = _partners(images, masks) | {
        child.name: (child / "images", child / "masks")
        for child in _sub_folders(folder)
        if (child / "images").is_dir() and (child / "masks").is_dir()
    }
    if not any(name.lower() in TRAIN_NAMES + VALIDATION_NAMES for name in splits):
        splits = {"train": (images, masks)} if images.is_dir() and masks.is_dir() else {}
    return Layout(splits, names_file=names_file if names_file.is_file() else None) if splits else None


def _partners(images: Path, masks: Path) -> dict[str, tuple[Path, Path]]:
    """The sub-folders that both have; logs those that only one has."""
    of_images, of_masks = ({child.name for child in _sub_folders(folder)} for folder in (images, masks))
    both = sorted(of_images & of_masks)
    if both and (lone := sorted(of_images ^ of_masks)):
        _logger.warning("Left aside, because %s and %s do not both have them: %s.", images, masks, lone)
    return {name: (images / name, masks / name) for name in both}


def _sub_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
