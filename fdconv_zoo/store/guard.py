"""Loading that timm does itself: nothing a file holds is run, and what is wrong with the file is said."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fdconv_zoo.errors import WeightsError
from fdconv_zoo.store.check import check_model_folder, check_weights_file, find_weights
from fdconv_zoo.store.read import read_checkpoint


@contextmanager
def guarded_file(path: str | Path | None) -> Iterator[None]:
    """Watch over timm loading weights from a local file, or a folder.

    timm before 1.0.26 unpickles whatever a file holds, so all but safetensors is read safely first. Where loading
    fails, the file is checked, for a message with its name in it.

    Args:
        path: of the file or folder; None where weights come from elsewhere.

    Raises:
        WeightsError: the file is unsafe or damaged.
    """
    if path is None or not Path(path).exists():
        yield
        return
    path = Path(path)
    file = find_weights(path) if path.is_dir() else path
    if file is not None and file.suffix != ".safetensors":
        read_checkpoint(file)
    try:
        yield
    except Exception as error:
        check_model_folder(path) if path.is_dir() else check_weights_file(path)
        if "weights_only" in str(error):
            raise WeightsError(
                f"{file} holds other objects beside its weights, which timm refuses; scripts/convert.py leaves them."
            ) from error
        raise
