"""Finds the image and the mask column of a table."""

from datasets import Dataset, Features, Image

from fdconv_zoo.data.columns import find_image_column, undecoded
from fdconv_zoo.errors import DataError

_MASK_NAMES = ("mask", "masks", "label", "labels", "annotation", "annotations", "segmentation", "semantic_segmentation")


def find_columns(features: Features, image: str | None, mask: str | None) -> tuple[str, str]:
    """The wanted columns; else a mask column of a usual name, or the only one of images beside the image's.

    Raises:
        DataError: no such column, or several that it could be; the message names those there are.
    """
    images = Features({name: feature for name, feature in features.items() if isinstance(feature, Image)})
    if mask is None:
        usual = [name for name in images if name.lower() in _MASK_NAMES and name != image]
        mask = usual[0] if len(usual) == 1 else None
    elif mask not in images:
        raise DataError(f"Column {mask!r} holds no masks. Columns of images: {', '.join(images) or 'none'}.")
    image = find_image_column(Features({name: kind for name, kind in features.items() if name != mask}), image)
    others = [name for name in images if name != image]
    if mask is None and len(others) != 1:
        found = f"Several columns could be the mask: {', '.join(others)}" if others else "No mask column found"
        raise DataError(f"{found}. The columns are {', '.join(features)}; name it with --mask-column.")
    return image, mask or others[0]


def undecoded_pairs(source: Dataset, image: str, mask: str) -> Dataset:
    """Only the two columns, as `image` and `mask`, both encoded until they are asked for."""
    source = undecoded(source.cast_column(mask, Image(decode=False)), image, mask)
    return source.rename_column("label", "mask")
