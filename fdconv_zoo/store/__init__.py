"""A model's files: finding, fetching, reading, checking and writing them, and building a model from them."""

from fdconv_zoo.store.check import check_finite, check_model_folder, check_weights_file, load_strictly
from fdconv_zoo.store.read import Checkpoint, read_checkpoint

__all__ = [
    "Checkpoint",
    "check_finite",
    "check_model_folder",
    "check_weights_file",
    "load_strictly",
    "read_checkpoint",
]
