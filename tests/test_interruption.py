"""Test that a signal ends a command at once, with the given message."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from mtsae_lens.errors import TrainingInterrupted
from mtsae_lens.interruption import interrupt_on_signal, stop_on_signal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_becomes_one_sentence(number: signal.Signals) -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    reached: list[int] = []

    @interrupt_on_signal("type it again")
    def work() -> None:
        try:
            signal.raise_signal(number)
            reached.append(1)
        except Exception:  # a library that swallows what it does not know
            reached.append(2)

    with pytest.raises(TrainingInterrupted, match=r"^type it again$") as stop:
        work()
    assert (stop.value.signal_number, reached) == (number, [])
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_work_inside_that_listens_for_itself_goes_first() -> None:
    """The inner code saves its state; the message of the outer command replaces its message."""
    saved = []

    @interrupt_on_signal("the whole")
    def work() -> None:
        with stop_on_signal() as request:
            signal.raise_signal(signal.SIGTERM)
            assert request.signal_number is not None
            saved.append(request.signal_number)
            raise TrainingInterrupted(request.signal_number, "a part")

    with pytest.raises(TrainingInterrupted, match=r"^the whole$") as stop:
        work()
    assert (saved, stop.value.signal_number) == ([signal.SIGTERM], signal.SIGTERM)


def test_a_sentence_that_says_more_stands() -> None:
    def grid() -> None:
        raise TrainingInterrupted(signal.SIGINT, "3 of 5 trials are done")

    with pytest.raises(TrainingInterrupted, match=r"^3 of 5 trials are done$"):
        interrupt_on_signal("what is done is kept", keep_inner_message=True)(grid)()
    with pytest.raises(TrainingInterrupted, match=r"^what is done is kept$"):
        interrupt_on_signal("what is done is kept", keep_inner_message=True)(lambda: signal.raise_signal(signal.SIGINT))()


def test_nothing_happens_without_a_signal() -> None:
    def work(value: Any) -> Any:
        return value

    assert interrupt_on_signal("never said")(work)(3) == 3
    with pytest.raises(ValueError, match="its own"), interrupt_on_signal("never said"):
        raise ValueError("its own")
