"""The exception that every module of this package raises."""


class DataError(ValueError):
    """A problem with the user's data; the message names what is wrong and what to do about it."""
