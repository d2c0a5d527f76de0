"""Errors that a person can act on: each says what came, what was needed, and what to type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MTSAEError(Exception):
    """Base of every error that the user, not the code, can put right. The command line prints it as one line."""


class ConfigError(MTSAEError, ValueError):
    """A setting is unknown, malformed or contradicts another."""


class DataError(MTSAEError, ValueError):
    """A text, a dataset or the activations made from it cannot be used."""


class ModelError(MTSAEError, ValueError):
    """A language model, a hook or an SAE cannot be used."""


class OutputError(MTSAEError, OSError):
    """Results cannot be written."""


class MTSAEWarning(UserWarning):
    """What a person should know though work goes on. The command line prints it as one line."""


class TrainingInterrupted(Exception):
    """Training stopped by a signal, after its state was saved.

    No `KeyboardInterrupt`: command-line libraries turn that into a silent exit, and it would not say which signal came.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number

    def __reduce__(self) -> tuple[type[TrainingInterrupted], tuple[int, str]]:
        """Overridden because an exception is rebuilt from its message alone, and a worker's must reach its parent."""
        return type(self), (self.signal_number, str(self))


def nearest(name: str, valid: Iterable[str], n: int = 3) -> str:
    """' Did you mean ...?' with the closest valid names, or the first few where none is close."""
    valid = list(valid)
    close = difflib.get_close_matches(name, valid, n=n, cutoff=0.5)
    if close:
        return f" Did you mean {' or '.join(repr(c) for c in close)}?"
    shown = ", ".join(valid[:12]) + (", ..." if len(valid) > 12 else "")
    return f" Valid: {shown}."
