"""A model's files: found, fetched, read safely, checked, built from, written."""

from fdconv_zoo.store.check import check_finite, check_model_folder, check_weights_file, load_strictly
from fdconv_zoo.store.guard import guarded_file
from fdconv_zoo.store.read import Checkpoint, read_checkpoint

__all__ = [
    "Checkpoint",
    "check_finite",
    "check_model_folder",
    "check_weights_file",
    "guarded_file",
    "load_strictly",
    "read_checkpoint",
]
