"""Describe what a trial found: one word, and the details of a failure."""

from __future__ import annotations

import re
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from faults.forks import UNCAUGHT, Ended
from mtsae_lens.errors import MTSAEError, TrainingInterrupted

_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # with which progress bars move about

GOOD = {
    "equal": "ended in the same bytes as an undisturbed run",
    "same": "gave the same result as the undamaged file",
    "refused": "refused in one line",
    "usage": "refused with the usage of the command",
    "done": "accepted, with a finite result",
}
BAD = {
    "different": "another result, without a word",
    "traceback": "an exception that the command line does not catch",
    "hang": "not finished in the time allowed",
    "not finite": "NaN or infinity in the result",
    "not one line": "refused, but not in one line",
    "torn": "a file that is neither the old one nor the new one",
    "left over": "files that an undisturbed run does not leave",
    "not resumed": "the same command again was refused",
    "died": "ended by a signal that nobody sent",
    "nobody": "two processes, and neither finished",
}


@dataclass(frozen=True)
class Finding:
    """The outcome of a trial.

    Args:
        outcome: a key of `GOOD` or `BAD`.
        what: the fault that was injected, or the input that was given.
        detail: what was seen.
        n_faults: faults that the trial injected.
    """

    outcome: str
    what: str
    detail: str = ""
    n_faults: int = 1

    @property
    def ok(self) -> bool:
        """Whether a promise was kept."""
        return self.outcome in GOOD


class Hang(BaseException):
    """The time limit is exceeded. It is not an `Exception`, so that no code on the way catches it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `Hang` in the block when the time is over."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def place(error: BaseException) -> str:
    """Where in the package an exception came from, as FILE:LINE."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/mtsae_lens/" in frame.filename] or list(frames)
    if not ours:
        return "nowhere"
    return f"{ours[-1].filename.rpartition('/mtsae_lens/')[2]}:{ours[-1].lineno}"


def attempt(call: Callable[[], str], seconds: float) -> tuple[str, str]:
    """Outcome and detail of a call that returns its own outcome, or raises."""
    try:
        with time_limit(seconds):
            return call(), ""
    except MTSAEError as error:
        return "refused", str(error)[:300]
    except TrainingInterrupted as stop:
        return "died", f"stopped by signal {stop.signal_number}"
    except Hang as hang:
        return "hang", f"not finished in {seconds:g} s ({place(hang)})"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return "traceback", f"{type(error).__name__}: {' '.join(str(error).split())[:160]} ({place(error)})"


def of_command(ended: Ended) -> tuple[str, str]:
    """Outcome and detail of a process that ran the command line."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", _CONTROL.sub("", ended.err)) if line.strip()]
    last = lines[-1][:300] if lines else ""
    if ended.timed_out:
        return "hang", last
    if ended.signal_number is not None:
        return "died", f"signal {ended.signal_number}; {last}"
    if ended.code == 0:
        return "done", ""
    if ended.code == UNCAUGHT or "Traceback (most recent call last)" in ended.err:
        frames = re.findall(r'File "[^"]*/mtsae_lens/([^"]+)", line (\d+)', ended.err)
        return "traceback", f"{last} ({':'.join(frames[-1]) if frames else 'outside the package'})"
    return _of_refusal(ended, lines)


def _of_refusal(ended: Ended, lines: list[str]) -> tuple[str, str]:
    errors = [line for line in lines if line.startswith("error: ")]
    if ended.code != 2 or not lines:
        return "not one line", f"exit code {ended.code}: {lines[-1:]}"
    if errors:
        in_one_line = len(errors) == 1 and lines[-1] == errors[0]
        return ("refused", errors[0][:300]) if in_one_line else ("not one line", " / ".join(lines)[-400:])
    if "Usage:" in ended.err or "─ Error ─" in ended.err:
        return "usage", lines[-1][:300]
    return "not one line", " / ".join(lines)[-400:]


def shorten(value: object, length: int = 160) -> str:
    """A value as one readable line."""
    text = repr(str(value) if isinstance(value, Path) else value)
    return text if len(text) <= length else f"{text[: length - 20]}... ({len(text):,} characters)"
