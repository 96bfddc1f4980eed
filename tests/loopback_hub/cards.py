"""The Hub's checks of a model card's metadata."""

import re
from typing import Any

import yaml

# Licences that this project's cards may use; the Hub knows more.
LICENSES = {"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-sa-4.0", "other", "unknown"}


def metadata(text: str) -> Any:
    """Return the metadata of a card; None if it has none.

    Raises:
        yaml.YAMLError: the metadata are not YAML.
    """
    match = re.match(r"\s*---\r?\n(.*?)\r?\n---\s*(\n|$)", text.lstrip("\ufeff"), re.DOTALL)
    return yaml.safe_load(match[1]) if match else None


def problems(text: str) -> tuple[list[str], list[str]]:
    """Return the errors and the warnings with which the Hub would answer."""
    try:
        data = metadata(text)
    except yaml.YAMLError as error:
        return [f"YAML Metadata Error: {error}"], []
    if data is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(data, dict):
        return ["YAML Metadata Error: metadata must be a mapping"], []
    errors = []
    licenses = data.get("license", [])
    for name in licenses if isinstance(licenses, list) else [licenses]:
        if name not in LICENSES:
            errors.append(f'"license" must be one of {sorted(LICENSES)}, not {name!r}')
    for key in ("tags", "datasets", "metrics", "language"):
        values = data.get(key, [])
        if not isinstance(values, list | str) or not all(isinstance(value, str) for value in values):
            errors.append(f'"{key}" must be a string or a list of strings')
    errors += _index_problems(data.get("model-index", []))
    return errors, []


def _index_problems(index: Any) -> list[str]:
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    errors = []
    for i, model in enumerate(index):
        at = f"model-index[{i}]"
        if not isinstance(model, dict) or not model.get("name") or not isinstance(model.get("results"), list):
            errors.append(f'"{at}" must have a name and results')
            continue
        for j, result in enumerate(model["results"]):
            for keys in (("task", "type"), ("dataset", "name"), ("dataset", "type")):
                if not isinstance(result.get(keys[0], {}), dict) or not result.get(keys[0], {}).get(keys[1]):
                    errors.append(f'"{at}.results[{j}].{".".join(keys)}" is required')
            for k, metric in enumerate(result.get("metrics") or [{}]):
                errors += [
                    f'"{at}.results[{j}].metrics[{k}].{key}" is required'
                    for key in ("type", "value")
                    if metric.get(key) is None
                ]
    return errors
