"""Names of models and of their files, as timm and the Hub use them."""

import difflib

import timm
from timm.models import split_model_name_tag

HUB, LOCAL = "hf-hub:", "local-dir:"  # timm's prefixes for a repository and for a folder
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
WEIGHTS_FILE = "model.safetensors"
# In timm's order of preference.
HUB_WEIGHTS_FILES = (WEIGHTS_FILE, "pytorch_model.bin")
LOCAL_WEIGHTS_FILES = (*HUB_WEIGHTS_FILES, "pytorch_model.pth", "model.pth")


def unknown_name(name: str) -> str | None:
    """Explain what is wrong with a timm name.

    Args:
        name: With or without a tag.

    Returns:
        Text to put after the name in an error message; None for a name that timm knows.
    """
    architecture, tag = split_model_name_tag(name)
    if not timm.is_model(architecture):
        return f"no such model; {suggest_models(architecture)}"
    tags = [split_model_name_tag(known)[1] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        return f"{architecture} has no weights tagged {tag}; its tags are {', '.join(tags) or 'none'}"
    return None


def suggest_models(architecture: str) -> str:
    """Suggest similar names of timm models, for an error message."""
    similar = difflib.get_close_matches(architecture, timm.list_models(), n=5)
    return f"did you mean {', '.join(similar)}?" if similar else "timm.list_models() lists all names"
