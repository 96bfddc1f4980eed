"""Finds the image column and the mask column of a table."""

from datasets import Dataset, Features, Image

from fdconv_zoo.data.columns import find_image_column, select_undecoded
from fdconv_zoo.errors import DataError

_MASK_NAMES = ("mask", "masks", "label", "labels", "annotation", "annotations", "segmentation", "semantic_segmentation")


def find_columns(features: Features, image: str | None, mask: str | None) -> tuple[str, str]:
    """Return the given columns. Default for the mask: a usual name, or else the only other column of images.

    Raises:
        DataError: there is no such column, or the choice is ambiguous; the message lists the columns.
    """
    images = Features({name: feature for name, feature in features.items() if isinstance(feature, Image)})
    if mask is None:
        usual = [name for name in images if name.lower() in _MASK_NAMES and name != image]
        mask = usual[0] if len(usual) == 1 else None
    elif mask not in images:
        raise DataError(f"Column {mask!r} does not hold masks. Image columns: {', '.join(images) or 'none'}.")
    image = find_image_column(Features({name: kind for name, kind in features.items() if name != mask}), image)
    others = [name for name in images if name != image]
    if mask is None and len(others) != 1:
        found = f"Several columns could be the mask: {', '.join(others)}" if others else "No mask column found"
        raise DataError(f"{found}. The columns are {', '.join(features)}. Choose one with --mask-column.")
    return image, mask or others[0]


def select_undecoded_pairs(source: Dataset, image: str, mask: str) -> Dataset:
    """Select the two columns, named `image` and `mask`, and leave both encoded."""
    source = select_undecoded(source.cast_column(mask, Image(decode=False)), image, mask)
    return source.rename_column("label", "mask")
