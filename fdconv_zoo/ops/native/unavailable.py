"""The one error of this folder."""


class UnavailableError(Exception):
    """There is no native library; the message says why, and what would help."""
