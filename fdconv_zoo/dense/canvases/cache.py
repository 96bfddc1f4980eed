"""The canvases in the user's cache, created on first use."""

import logging
import os
from pathlib import Path

from filelock import FileLock

from fdconv_zoo.dense.canvases.write import write_canvases
from fdconv_zoo.errors import DataError, WriteError
from fdconv_zoo.store.files import explaining_write_errors

_logger = logging.getLogger(__name__)

FASHION_CANVASES = "fashion_canvases"  # name of the dataset, for users
VERSION = "canvases-v1"  # increased when any pixel changes, so that caches are not mixed


def canvases_folder() -> Path:
    """Return the folder of the demo data: 1,000 training and 250 validation canvases; see the package's docstring.

    The data are created on first use in `$XDG_CACHE_HOME/fdconv_zoo`, by default `~/.cache/fdconv_zoo`: about 50 MB in
    15 seconds. Of several processes, one creates them while the others wait.

    Raises:
        DataError: the cache could not be written.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fdconv_zoo"
    folder = cache / VERSION
    if folder.is_dir():  # an existing cache may be read-only
        return folder
    try:
        with explaining_write_errors(folder):
            cache.mkdir(parents=True, exist_ok=True)
            with FileLock(cache / f"{VERSION}.lock"):
                if not folder.is_dir():
                    # A warning, because it is shown without any logging configuration.
                    _logger.warning("Creating the demo data in %s (once, about 15 seconds).", folder)
                    write_canvases(folder)
    except WriteError as error:
        raise DataError(f"{error}. Set XDG_CACHE_HOME to a writable folder.") from error
    return folder
