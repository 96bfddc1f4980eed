"""Names of models and of their files, as timm and the Hub use them."""

import difflib

import timm

HUB, LOCAL = "hf-hub:", "local-dir:"  # timm's prefixes for a repository and for a folder
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
# In timm's order of preference.
HUB_WEIGHTS_FILES = (WEIGHTS_FILE, "pytorch_model.bin")
LOCAL_WEIGHTS_FILES = (*HUB_WEIGHTS_FILES, "pytorch_model.pth", "model.pth")


def suggest_models(name: str) -> str:
    """Suggest similar model names, for an error message.

    Args:
        name: an architecture, without tag.
    """
    near = difflib.get_close_matches(name, timm.list_models(), n=5)
    return f"did you mean {', '.join(near)}?" if near else "timm.list_models() gives all names"
