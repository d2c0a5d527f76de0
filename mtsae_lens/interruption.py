"""Ctrl-C and SIGTERM as a question asked between two steps, so that no step is left half done."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

from mtsae_lens.errors import TrainingInterrupted

STARTS_ANEW = "unfinished work is lost; the same command starts from the beginning"
GOES_ON = "finished work is kept; the same command resumes"

_SENT_ON_WITHIN = 5.0  # seconds, in which torchrun sends on a signal


class StopRequest:
    """The signal that asked to stop, once one came."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def __bool__(self) -> bool:
        return self.signal_number is not None


class Stopped(Exception):
    """A long piece of work was left half done because a signal asked to stop."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"signal {signal_number}")
        self.signal_number = signal_number


_requests: list[StopRequest] = []  # of the `stop_on_signal` blocks that are open, the innermost last
_abandoned: ContextVar[threading.Event | None] = ContextVar("abandoned", default=None)  # of the work of one thread


def raise_if_stopped() -> None:
    """Leave a long step early, between two of its parts; does nothing outside `stop_on_signal` and `abandoned_by`.

    Raises:
        Stopped: a signal asked to stop, or nobody wants the result. Whoever opened `stop_on_signal` or `abandoned_by` catches it.
    """
    if _requests and _requests[-1].signal_number is not None:
        raise Stopped(_requests[-1].signal_number)
    abandoned = _abandoned.get()
    if abandoned is not None and abandoned.is_set():
        raise Stopped(signal.SIGINT)


@contextmanager
def abandoned_by(event: threading.Event) -> Iterator[None]:
    """Let `raise_if_stopped` end the work of this thread once another thread sets the event.

    Args:
        event: set when nobody wants the result any more.
    """
    token = _abandoned.set(event)
    try:
        yield
    finally:
        _abandoned.reset(token)


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request; a second Ctrl-C interrupts at once. Handlers are put back at the end.

    `torchrun` sends each of its processes the signal that the terminal has sent to all of them, so there the second one is passed over.
    """
    request = StopRequest()
    asked_at = 0.0
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may set handlers
        return

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked_at
        if request:
            if "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - asked_at < _SENT_ON_WITHIN:
                return
            raise KeyboardInterrupt
        request.signal_number, asked_at = number, time.monotonic()

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    _requests.append(request)
    try:
        yield request
    finally:
        _requests.remove(request)
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def stopped_with(message: str, *, unless_told: bool = False) -> Iterator[None]:
    """End the block at once on SIGINT or SIGTERM, with one true sentence about what is left and what to type.

    Work inside that listens for itself (`stop_on_signal`) goes first: it saves its state, and its own sentence gives way to this one, or
    stands.

    Args:
        message: what is kept, and what to type to go on.
        unless_told: the sentence of work inside stands, because it says more.

    Raises:
        TrainingInterrupted: a signal came.
    """
    came = signal.SIGINT

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = signal.Signals(number)
        raise KeyboardInterrupt  # which no `except Exception` of a library swallows

    is_main = threading.current_thread() is threading.main_thread()
    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)} if is_main else {}
    try:
        yield
    except KeyboardInterrupt as stop:
        raise TrainingInterrupted(came, message) from stop
    except TrainingInterrupted as stop:
        if unless_told:
            raise
        raise TrainingInterrupted(stop.signal_number, message) from stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
