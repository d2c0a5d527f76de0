"""Define the errors that a user can act on. Each message says what was expected, what came, and what to type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MTSAEError(Exception):
    """Base of every error that the user can correct. The command line prints it as one line."""


class ConfigError(MTSAEError, ValueError):
    """A setting is unknown, malformed or contradicts another."""


class DataError(MTSAEError, ValueError):
    """A text, a dataset or activations computed from it cannot be used."""


class DivergedError(DataError):
    """The loss or the weights of a training are not finite."""


class SilentSAEError(DataError):
    """No feature of an SAE fires on a text."""


class ModelError(MTSAEError, ValueError):
    """A language model, a hook or an SAE cannot be used."""


class OutputError(MTSAEError, OSError):
    """Results cannot be written."""


class MTSAEWarning(UserWarning):
    """Something that the user should know although the work continues. The command line prints it as one line."""


class TrainingInterrupted(Exception):
    """Training was stopped by a signal, after its state was saved.

    It is not a `KeyboardInterrupt`, because command-line libraries turn that into a silent exit, and it does not say which signal arrived.

    Args:
        signal_number: the signal.
        message: what was saved, and how to continue.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number

    def __reduce__(self) -> tuple[type[TrainingInterrupted], tuple[int, str]]:
        """Return how to rebuild the error in another process; by default, an exception is rebuilt from its message alone."""
        return type(self), (self.signal_number, str(self))


def nearest(name: str, valid: Iterable[str], n: int = 3) -> str:
    """Return " Did you mean ...?" with the closest valid names, whatever their case, or the first few valid names if none is close.

    Args:
        name: the name that the user gave.
        valid: the valid names.
        n: largest number of suggestions.
    """
    valid = list(valid)
    by_key = {other.lower(): other for other in valid}
    close = difflib.get_close_matches(name.lower(), by_key, n=n, cutoff=0.6)
    if close:
        return f" Did you mean {' or '.join(repr(by_key[key]) for key in close)}?"
    shown = ", ".join(valid[:12]) + (", ..." if len(valid) > 12 else "")
    return f" Valid: {shown}."
