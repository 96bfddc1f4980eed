"""Downloads of pretrained weights: errors that say what happened and what to do, and no damaged file in the cache."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from timm.models import PretrainedCfg

from fdconv_zoo.store.cache import cached_files, remove_damaged
from fdconv_zoo.store.hub_errors import explain, without_signatures


@contextmanager
def checked_download(variant: str, cfg: PretrainedCfg, cache_dir: str | Path | None = None) -> Iterator[None]:
    """Watch over loading weights that may come from the Hub.

    The client compares a file's size with what was announced, not its hash. A file that arrives in the block is held
    against its hash here, once, and taken out of the cache again if it differs.

    Args:
        variant: the architecture's name.
        cfg: where its weights come from.
        cache_dir: of the client; by default its own.

    Raises:
        RuntimeError: the weights cannot be had from the Hub; names the repository, the reason, and what can be done.
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
        raise RuntimeError(_message(variant, cfg, reason, failure)) from failure
    if failure:
        raise failure


def _comes_from_hub(cfg: PretrainedCfg) -> bool:
    """Whether timm looks at the Hub: an own file or state dict goes before, unless the Hub was asked for by name."""
    return bool(cfg.hf_hub_id) and (cfg.source == "hf-hub" or not (cfg.file or cfg.state_dict))


def _message(variant: str, cfg: PretrainedCfg, reason: str, error: Exception | None = None) -> str:
    details = f" ({type(error).__name__}: {without_signatures(str(error))})" if error else ""
    return (
        f"The pretrained weights of {variant} cannot be had from the Hugging Face repository {cfg.hf_hub_id!r}: "
        f"{reason}; or get its weights file by other means and pass pretrained_cfg_overlay="
        f"dict(file='path/to/model.safetensors'); or start from random weights with pretrained=False.{details}"
    )
