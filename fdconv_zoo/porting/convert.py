"""Converts another project's weights file into a folder that timm loads, and checks that it computes the same."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import split_model_name_tag
from torch import nn

from fdconv_zoo.errors import ConfigError, RunFolderError, WeightsError
from fdconv_zoo.index.family import Family, all_families, find_family
from fdconv_zoo.layers.replace import LAYER_OPTIONS
from fdconv_zoo.porting.arguments import implied_arguments
from fdconv_zoo.porting.openmmlab import backbone_config, dilations_note, layer_options
from fdconv_zoo.porting.report import Conversion
from fdconv_zoo.porting.source import Source, understand
from fdconv_zoo.porting.verify import verify_folder
from fdconv_zoo.store import Checkpoint, load_strictly, read_checkpoint
from fdconv_zoo.store.build import check_model_name, resolve_preprocessing
from fdconv_zoo.store.cache import hash_file
from fdconv_zoo.store.export import FILES, export_model
from fdconv_zoo.store.files import remove, replacing, write_text

REPORT = "conversion.json"


def convert_checkpoint(
    path: str | Path,
    model_name: str,
    output: str | Path,
    *,
    model_kwargs: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Convert a weights file, write the folder, load it again through timm, and compare the outputs.

    Args:
        path: a safetensors file or a file written by ``torch.save``, from the paper's authors, OpenMMLab, torchvision,
            timm, or the authors of the architecture.
        model_name: timm's name of a model of one of our families, FDConv or plain. A tag chooses the preprocessing.
        output: the folder to create, with ``model.safetensors``, ``config.json`` and ``conversion.json``.
        model_kwargs: arguments of the model that cannot be derived from the weights.
        overwrite: replace the folder of an earlier conversion.

    Raises:
        ConfigError: the model is unknown or not of our families, or does not accept the arguments.
        RunFolderError: the output folder already exists, or with ``overwrite``, contains other files.
        WeightsError: the file cannot be read, does not fit the model, or the result deviates. Nothing is written.
        WriteError: the folder cannot be written.
    """
    output = Path(output)
    _check_output(output, overwrite)
    family = _find_family(model_name)
    checkpoint = read_checkpoint(path)
    source = understand(checkpoint, family)
    arguments, notes = _arguments(checkpoint, source)
    arguments |= dict(model_kwargs or {})
    model = _build(model_name, source, arguments)
    if source.is_fdconv:
        load_strictly(model, source.tensors, checkpoint.path)
        reference, compared_with = model, "the model in memory"
    else:
        reference = _load_plain(model_name, source, arguments, checkpoint)
        load_strictly(model, source.tensors, checkpoint.path)
        compared_with = "the plain network with the file's weights"

    with replacing(output) as temporary:
        temporary.mkdir()
        export_model(
            model,
            temporary,
            class_names=_class_names(checkpoint, source),
            preprocessing=resolve_preprocessing(
                model, in_chans=arguments.get("in_chans"), img_size=arguments.get("img_size")
            ),
            model_args=arguments,
        )
        deviation = verify_folder(temporary, reference)
        conversion = Conversion(
            source=checkpoint.path.name,
            sha256=hash_file(checkpoint.path, hashlib.sha256()),
            library=source.library,
            model=model_name,
            model_args=arguments,
            num_classes=source.num_classes,
            mapped=dict(source.mapped),
            left=tuple((part, count, reason) for (part, reason), count in source.left.items()),
            other_entries=checkpoint.other_entries,
            notes=tuple(notes),
            compared_with=compared_with,
            deviation=deviation,
        )
        write_text(temporary / REPORT, json.dumps(asdict(conversion), indent=2) + "\n")
        if overwrite:
            remove(output)
    return conversion


def _check_output(output: Path, overwrite: bool) -> None:
    if not output.exists() and not output.is_symlink():
        return
    found = {file.name for file in output.iterdir()} if output.is_dir() else None
    if overwrite and found is not None and found <= {*FILES, REPORT}:
        return
    remedy = (
        "it holds other files than a conversion's, and was not changed"
        if overwrite
        else "choose another folder, or --overwrite to replace an earlier conversion"
    )
    raise RunFolderError(f"--output {output} exists already: {remedy}")


def _find_family(model_name: str) -> Family:
    """The family of one of our models, or of a plain timm model."""
    check_model_name(model_name)
    architecture = split_model_name_tag(model_name)[0]
    if not timm.is_model(architecture):  # a folder, or a repository of the Hub
        raise ConfigError(f"--model {model_name}: give the name of a registered model")
    module = timm.model_entrypoint(architecture).__module__
    if module.startswith("fdconv_zoo."):
        return find_family(architecture)
    families = all_families()
    for family in families:
        if module.rpartition(".")[2] in family.porting.timm_modules:
            return family
    titles = ", ".join(family.title for family in families)
    raise ConfigError(f"--model {model_name}: weights are converted for these families only: {titles}")


def _arguments(checkpoint: Checkpoint, source: Source) -> tuple[dict[str, Any], list[str]]:
    arguments, notes = implied_arguments(source), []
    config = backbone_config(checkpoint.meta)
    if config is not None:
        if difference := source.family.porting.difference(config):
            raise WeightsError(f"{checkpoint.path} cannot be converted: {difference}")
        arguments |= layer_options(config, checkpoint.path)
        notes += filter(None, [dilations_note(config)])
    elif source.is_fdconv and "band_mask" in arguments:
        notes.append("the file has no training configuration: temperatures are assumed to be 1, activations sigmoids")
    if not source.num_classes:
        notes.append("no classifier: timm.create_model(..., num_classes=N) adds a fresh one")
    return arguments, notes


def _build(model_name: str, source: Source, arguments: Mapping[str, Any]) -> nn.Module:
    try:
        return timm.create_model(model_name, pretrained=False, num_classes=source.num_classes, **arguments).eval()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"--model {model_name} cannot be built with {dict(arguments)}: {error}") from error


def _load_plain(model_name: str, source: Source, arguments: Mapping[str, Any], checkpoint: Checkpoint) -> nn.Module:
    """The plain model with the file's weights; changes their shapes in ``source`` if only axes of length 1 differ."""
    plain = {name: value for name, value in arguments.items() if name not in LAYER_OPTIONS}
    if "_fdconv" in model_name:
        plain["fdconv_layers"] = ()
    twin = _build(model_name, source, plain)
    shapes = {name: tensor.shape for name, tensor in twin.state_dict().items()}
    for name, tensor in source.tensors.items():
        if name in shapes and _lengths(tensor.shape) == _lengths(shapes[name]):
            source.tensors[name] = tensor.view(shapes[name])
    load_strictly(twin, source.tensors, checkpoint.path)
    return twin


def _lengths(shape: torch.Size) -> list[int]:
    """A shape without its axes of length 1: linear layers and 1x1 convolutions have the same weights."""
    return [length for length in shape if length != 1]


def _class_names(checkpoint: Checkpoint, source: Source) -> list[str] | None:
    """The names of the classes in an OpenMMLab file; None if there are none for this classifier."""
    dataset = checkpoint.meta.get("dataset_meta")
    names = checkpoint.meta.get("CLASSES") or (dataset.get("classes") if isinstance(dataset, Mapping) else None)
    is_theirs = isinstance(names, list | tuple) and len(names) == source.num_classes > 0
    return [str(name) for name in names] if is_theirs else None
