"""Errors a user can act on; the scripts show their message without a traceback."""


class TrainingError(Exception):
    """A run cannot start or go on; the message says why and what to do."""


class ConfigError(TrainingError):
    """A flag or a recipe is wrong, or flags do not fit together."""


class RunFolderError(TrainingError):
    """The output folder holds something a run must not touch, or another run."""


class WriteError(TrainingError):
    """A file of the run could not be written, most often because the disk is full."""


class NonFiniteError(TrainingError):
    """The loss or the weights became infinite or NaN."""
