"""Models as folders and repositories: their arguments in config.json, their weights as safetensors, and a card."""

import json
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import PyTorchModelHubMixin, constants

from fdconv_zoo.errors import ConfigError, WeightsError
from fdconv_zoo.store import check_finite, load_strictly, read_checkpoint
from fdconv_zoo.store.export import replacing_model
from fdconv_zoo.store.fetch import fetch_file

Model = TypeVar("Model", bound="SavedModel")

_FILES = (constants.CONFIG_NAME, constants.SAFETENSORS_SINGLE_FILE)


class SavedModel(PyTorchModelHubMixin):
    """The Hub's mixin for ``nn.Module``, with errors that say what is wrong with a folder.

    Attributes:
        config: The arguments that build the model again, plain JSON values; the model sets it.
    """

    config: dict[str, Any]

    def save_pretrained(self, save_directory: str | Path, *, config: dict | None = None, **kwargs: Any) -> str | None:
        """Write ``config.json``, ``model.safetensors`` and, where there is none, ``README.md`` into a folder."""
        return super().save_pretrained(save_directory, config=config or self.config, **kwargs)

    def push_to_hub(self, repo_id: str, *, model_card_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> str:
        """Upload it in one commit; further arguments are the mixin's."""
        return super().push_to_hub(
            repo_id, model_card_kwargs={"repo_id": repo_id, **(model_card_kwargs or {})}, **kwargs
        )

    @classmethod
    def from_pretrained(
        cls: type[Model],
        pretrained_model_name_or_path: str | Path,
        *,
        map_location: str = "cpu",
        revision: str | None = None,
        **download: Any,
    ) -> Model:
        """Build the model that a folder or a repository holds, in eval mode.

        Args:
            pretrained_model_name_or_path: Folder, or repository on the Hub.
            map_location: Device.
            revision: Branch, tag or commit of a repository.
            **download: Of ``huggingface_hub.hf_hub_download``, such as ``token``.

        Raises:
            WeightsError: the folder is damaged, or another model's.
            HubError: the repository cannot be had.
        """
        name = str(pretrained_model_name_or_path)
        if Path(name).is_dir():
            config_file, weights_file = (Path(name) / file for file in _FILES)
        else:
            config_file, weights_file = (fetch_file(name, file, revision, **download) for file in _FILES)
        config = _read_config(config_file)
        tensors = read_checkpoint(weights_file).tensors
        check_finite(weights_file, tensors)
        try:
            model = cls(**config)
        except (ConfigError, TypeError) as error:
            raise WeightsError(
                f"{config_file} does not describe a {cls.__name__}: {str(error).rstrip('.')}. It is another model's, "
                "or of a newer version; a backbone of your own must be registered with timm before."
            ) from error
        load_strictly(model, tensors, weights_file)
        return model.eval().to(map_location)


def export(model: SavedModel, folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors`` into a folder, each whole or not at all.

    Raises:
        WriteError: they could not be written.
    """
    with replacing_model(folder) as temporary:
        model.save_pretrained(temporary)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}. Is it the whole folder?") from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not JSON ({error}). Get the file again.") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{path} holds no arguments of a model: it is another library's.")
    return config
