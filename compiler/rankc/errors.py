"""What can go wrong, one class per reader: who has to act decides the class and the exit code."""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class Exit(IntEnum):
    """The process exit codes of `rankc` and `rankrt`; a CI may branch on them."""

    OK = 0
    INTERNAL = 1  # a bug of ours
    USAGE = 2  # the recipe, the command line or the data
    MODEL = 3  # the model cannot be read or is not supported
    ACCURACY = 4  # an accuracy gate failed
    PERFORMANCE = 5  # a size or latency gate failed
    ENVIRONMENT = 6  # the machine: a missing package, a full disk, no device
    BUILD = 7  # an engine could not be built
    INTERRUPTED = 130  # Ctrl-C


class RankcError(Exception):
    """An error that a user can act on. The message says what, where, and what to do."""

    exit_code: ClassVar[Exit] = Exit.INTERNAL


class RecipeError(RankcError):
    """The recipe or an option cannot mean anything; for whoever wrote the recipe."""

    exit_code = Exit.USAGE


class DataError(RankcError):
    """Calibration or validation data does not fit the model; for whoever made the data."""

    exit_code = Exit.USAGE


class ModelError(RankcError):
    """The model is corrupt, hostile, or beyond what is supported; for whoever exported it."""

    exit_code = Exit.MODEL


class MachineError(RankcError):
    """The machine lacks something: a package, a device, disk space; for whoever runs it."""

    exit_code = Exit.ENVIRONMENT
