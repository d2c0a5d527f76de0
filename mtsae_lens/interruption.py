"""Defer Ctrl-C and SIGTERM to the end of the current step, so that no step is left incomplete."""

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

STARTS_ANEW = "unfinished work is discarded; run the same command to start again"
GOES_ON = "finished work is kept; run the same command to resume"

_SENT_ON_WITHIN = 5.0  # seconds, in which torchrun sends on a signal


class StopRequest:
    """The signal that asked to stop, if one arrived."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def __bool__(self) -> bool:
        return self.signal_number is not None


class ComputationStopped(Exception):
    """A long computation was left incomplete because a signal asked to stop.

    Args:
        signal_number: the signal.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"signal {signal_number}")
        self.signal_number = signal_number


_requests: list[StopRequest] = []  # of the `stop_on_signal` blocks that are open, the innermost last
_abandoned: ContextVar[threading.Event | None] = ContextVar("abandoned", default=None)  # of the work of one thread


def raise_if_stopped() -> None:
    """Leave a long step early, between two of its parts; does nothing outside `stop_on_signal` and `abandoned_by`.

    Raises:
        ComputationStopped: a signal asked to stop, or nobody wants the result. Whoever opened `stop_on_signal` or `abandoned_by` catches it.
    """
    if _requests and _requests[-1].signal_number is not None:
        raise ComputationStopped(_requests[-1].signal_number)
    abandoned = _abandoned.get()
    if abandoned is not None and abandoned.is_set():
        raise ComputationStopped(signal.SIGINT)


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
    """Turn the first SIGINT or SIGTERM into a request to stop; a second Ctrl-C interrupts at once. The handlers are restored at the end.

    `torchrun` sends each of its processes the signal that the terminal has sent to all of them, so there the second one is ignored.
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
def interrupt_on_signal(message: str, *, keep_inner_message: bool = False) -> Iterator[None]:
    """End the block at once on SIGINT or SIGTERM, with a sentence that says what was kept and what to type.

    Code inside that uses `stop_on_signal` is stopped first: it saves its state, and its own message is replaced by this one, or kept.

    Args:
        message: what is kept, and what to type to continue.
        keep_inner_message: whether the message of the code inside is kept, because it says more.

    Raises:
        TrainingInterrupted: a signal arrived.
    """
    came = signal.SIGINT

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = signal.Signals(number)
        raise KeyboardInterrupt  # not caught by `except Exception` in a library

    is_main = threading.current_thread() is threading.main_thread()
    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)} if is_main else {}
    try:
        yield
    except KeyboardInterrupt as stop:
        raise TrainingInterrupted(came, message) from stop
    except TrainingInterrupted as stop:
        if keep_inner_message:
            raise
        raise TrainingInterrupted(stop.signal_number, message) from stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
