"""The error that this package raises."""


class UnavailableError(Exception):
    """The native library is not available; the message says why, and how to fix it."""
