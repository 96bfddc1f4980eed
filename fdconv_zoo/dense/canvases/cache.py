"""The canvases in the user's cache, made when they are first asked for."""

import logging
import os
from pathlib import Path

from filelock import FileLock

from fdconv_zoo.dense.canvases.write import write_canvases
from fdconv_zoo.errors import DataError, WriteError
from fdconv_zoo.store.files import explaining_write_errors

_logger = logging.getLogger(__name__)

FASHION_CANVASES = "fashion_canvases"  # what a user calls this dataset
VERSION = "canvases-v1"  # raised whenever a pixel changes, so that no cache mixes two sets


def canvases_folder() -> Path:
    """The folder of the demo data, 1,000 canvases for training and 250 for validation; see the package's docstring.

    It is made at first use in `$XDG_CACHE_HOME/fdconv_zoo`, by default `~/.cache/fdconv_zoo`: about 50 MB, in
    some 15 seconds. Of several processes one makes it and the others wait.

    Raises:
        DataError: the cache cannot be written.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fdconv_zoo"
    folder = cache / VERSION
    if folder.is_dir():  # a cache that is there may be read-only
        return folder
    try:
        with explaining_write_errors(folder):
            cache.mkdir(parents=True, exist_ok=True)
            with FileLock(cache / f"{VERSION}.lock"):
                if not folder.is_dir():
                    # A warning, so that it is seen where nobody has set up logging.
                    _logger.warning("Making the demo data in %s, once: about 15 seconds.", folder)
                    write_canvases(folder)
    except WriteError as error:
        raise DataError(f"{error}. Set XDG_CACHE_HOME to a folder that can be written.") from error
    return folder
