"""Makes timm's loading of weights safe: clear errors, no damaged files in the cache, no code from weights files."""

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
    """Published weights could not be downloaded. The message also lists remedies in Python.

    Attributes:
        reason: The repository, the reason and a general remedy, without the remedies in Python.
    """

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


@contextmanager
def checked_download(variant: str, cfg: PretrainedCfg, cache_dir: str | Path | None = None) -> Iterator[None]:
    """Check weights that timm downloads from the Hub in the block.

    The client compares a file's size with the expected size, but not its hash. Files that are downloaded in the block
    are hashed here, once, and removed from the cache if they are damaged.

    Args:
        variant: name of the architecture.
        cfg: timm's configuration of the weights.
        cache_dir: the client's cache. Default: the client's setting.

    Raises:
        DownloadError: the weights could not be downloaded; the message names the repository, the reason and remedies.
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
    """Whether timm loads from the Hub: it prefers a file or state dict, unless the name is that of a repository."""
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

    timm before 1.0.26 unpickles any object in a file, so files other than safetensors are read safely first. If loading
    fails, the file is checked, to raise an error that names the file and the problem.

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
