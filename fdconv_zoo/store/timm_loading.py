"""Guards around timm's own loading of weights: clear errors, no damaged download in the cache, no code run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from timm.models import PretrainedCfg

from fdconv_zoo.errors import WeightsError
from fdconv_zoo.store.cache import cached_files, remove_damaged
from fdconv_zoo.store.check import check_model_folder, check_weights_file, find_weights_file
from fdconv_zoo.store.hub_errors import explain, without_signatures
from fdconv_zoo.store.read import read_checkpoint


class DownloadError(RuntimeError):
    """Published weights could not be downloaded. The message has remedies in Python.

    Attributes:
        reason: Why not, and what to do about it, without them.
    """

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


@contextmanager
def checked_download(variant: str, cfg: PretrainedCfg, cache_dir: str | Path | None = None) -> Iterator[None]:
    """Check weights that timm downloads from the Hub in the block.

    The client compares a file's size with the announced one, but not its hash. Files that arrive in the block are
    hashed here, once, and removed from the cache if they are damaged.

    Args:
        variant: the architecture's name.
        cfg: where its weights come from.
        cache_dir: the client's cache. Default: the client's setting.

    Raises:
        DownloadError: the weights could not be downloaded; names the repository, the reason and possible remedies.
    """
    if not _comes_from_hub(cfg):
        yield
        return
    repo_id, _, revision = cfg.hf_hub_id.partition("@")
    known = {file for file in cached_files(repo_id, cache_dir) if file.path.is_file()}
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    damage = remove_damaged(set(cached_files(repo_id, cache_dir)) - known)
    reason = damage or (failure and explain(failure, revision, cache_dir))
    if reason:
        raise DownloadError(_message(variant, cfg, reason, failure), f"{cfg.hf_hub_id}: {reason}") from failure
    if failure:
        raise failure


def _comes_from_hub(cfg: PretrainedCfg) -> bool:
    """Whether timm looks at the Hub: it prefers a file or state dict, unless the model is named by its repository."""
    return bool(cfg.hf_hub_id) and (cfg.source == "hf-hub" or not (cfg.file or cfg.state_dict))


def _message(variant: str, cfg: PretrainedCfg, reason: str, error: Exception | None = None) -> str:
    details = f" ({type(error).__name__}: {without_signatures(str(error))})" if error else ""
    return (
        f"The pretrained weights of {variant} could not be downloaded from the Hugging Face repository "
        f"{cfg.hf_hub_id!r}: {reason}; or get the weights file by other means and pass pretrained_cfg_overlay="
        f"dict(file='path/to/model.safetensors'); or start from random weights with pretrained=False.{details}"
    )


@contextmanager
def guarded_file(path: str | Path | None) -> Iterator[None]:
    """Check weights that timm reads from a local file or folder in the block.

    timm before 1.0.26 unpickles whatever a file holds, so everything but safetensors is read safely first. If loading
    fails, the file is checked for an error message that names it.

    Args:
        path: the file or folder; None if the weights come from elsewhere.

    Raises:
        WeightsError: the file is unsafe or damaged.
    """
    if path is None or not Path(path).exists():
        yield
        return
    path = Path(path)
    file = find_weights_file(path) if path.is_dir() else path
    if file is not None and file.suffix != ".safetensors":
        read_checkpoint(file)
    try:
        yield
    except Exception as error:
        check_model_folder(path) if path.is_dir() else check_weights_file(path)
        if "weights_only" in str(error):
            raise WeightsError(
                f"{file} holds other objects besides its weights, which timm refuses to load. Write the weights alone "
                "to a new file with `fdconv-zoo convert`."
            ) from error
        raise
