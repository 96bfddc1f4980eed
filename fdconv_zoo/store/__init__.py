"""Finds, fetches, reads, checks and writes a model's files, and builds models from them."""

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
