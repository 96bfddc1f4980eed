"""Saves models to folders and Hub repositories: arguments in config.json, weights as safetensors, and a model card."""

from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import PyTorchModelHubMixin, constants
from torch import nn

from fdconv_zoo.errors import WeightsError
from fdconv_zoo.store import check_finite, load_strictly, read_checkpoint
from fdconv_zoo.store.config import limited_by, read_config
from fdconv_zoo.store.export import replacing_model
from fdconv_zoo.store.fetch import fetch_file

Model = TypeVar("Model", bound="SavedModel")

_FILES = (constants.CONFIG_NAME, constants.SAFETENSORS_SINGLE_FILE)


class SavedModel(nn.Module, PyTorchModelHubMixin):
    """A module with the Hub's mixin, and with errors that say what is wrong with a model's files.

    Attributes:
        config: The arguments that rebuild the model, as JSON values. Subclasses set it.
    """

    config: dict[str, Any]

    def save_pretrained(self, save_directory: str | Path, *, config: Any = None, **kwargs: Any) -> str | None:
        """Write ``config.json``, ``model.safetensors`` and, unless it exists, ``README.md`` to a folder."""
        return super().save_pretrained(save_directory, config=config or self.config, **kwargs)

    def push_to_hub(self, repo_id: str, *, model_card_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> str:
        """Upload the model in one commit. See ``huggingface_hub.PyTorchModelHubMixin`` for further arguments."""
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
        """Load a model from a folder or a Hub repository, in eval mode.

        Args:
            pretrained_model_name_or_path: A folder, or the name of a repository on the Hub.
            map_location: Device of the model.
            revision: Branch, tag or commit of the repository.
            **download: Arguments of ``huggingface_hub.hf_hub_download``, such as ``token``.

        Raises:
            WeightsError: the folder is damaged, or contains another kind of model.
            HubError: the repository could not be downloaded.
        """
        name = str(pretrained_model_name_or_path)
        if Path(name).is_dir():
            config_file, weights_file = (Path(name) / file for file in _FILES)
        else:
            config_file, weights_file = (fetch_file(name, file, revision, **download) for file in _FILES)
        config = read_config(config_file)
        tensors = read_checkpoint(weights_file).tensors
        check_finite(weights_file, tensors)
        try:
            with limited_by(weights_file):
                model = cls(**config)
        except WeightsError as error:
            raise WeightsError(f"{config_file}: {error}") from error
        except Exception as error:  # a damaged configuration can fail with anything
            raise WeightsError(
                f"{config_file} does not describe a {cls.__name__}: {str(error).rstrip('.')}. It belongs to "
                "another kind of model or to a newer version; a custom backbone must be registered with timm first."
            ) from error
        load_strictly(model, tensors, weights_file)
        return model.eval().to(map_location)


def export(model: SavedModel, folder: Path) -> None:
    """Write a model to a folder; an interrupted write leaves no partial files.

    Raises:
        WriteError: the files could not be written.
    """
    with replacing_model(folder) as temporary:
        model.save_pretrained(temporary)
