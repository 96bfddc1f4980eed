"""What to say of a model name that timm does not know."""

import difflib

import timm


def suggest_models(name: str) -> str:
    """Near names that timm has, for an error message.

    Args:
        name: an architecture, without tag.
    """
    near = difflib.get_close_matches(name, timm.list_models(), n=5)
    return f"did you mean {', '.join(near)}?" if near else "timm.list_models() gives all names"
