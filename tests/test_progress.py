"""Test progress bars: one for each phase, with a total, and none if they are disabled."""

from __future__ import annotations

import time
from typing import Any

import pytest

from mtsae_lens import progress
from mtsae_lens.progress import advance, announced, phase, track


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every bar that was made, as (description, unit, total, bar)."""
    made: list[Any] = []
    original = progress.tqdm

    def tqdm(*arguments: Any, **options: Any) -> Any:
        bar = original(*arguments, **options)
        made.append((options["desc"], options["unit"], options["total"], bar))
        return bar

    monkeypatch.setattr(progress, "tqdm", tqdm)
    monkeypatch.setattr(progress, "_DELAY_SECONDS", 0)
    return made


def test_a_loop_has_a_bar_that_knows_its_length(bars: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([1, 2, 3], "counting", "number")) == [1, 2, 3]
    assert list(track(iter("ab"), "spelling", "letter", 2)) == ["a", "b"]
    assert [(*bar[:3], bar[3].n) for bar in bars] == [("counting", "number", 3, 3), ("spelling", "letter", 2, 2)]
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "counting: 100%" in shown.err


def test_a_phase_has_one_bar_whatever_loops_inside(bars: list[Any]) -> None:
    with phase("measuring", "run", 6):
        for _ in track(range(3), "reading", "batch"):
            for _ in range(2):
                advance()
        with phase("a part of it", "step", 100):
            pass
    assert [(*bar[:3], bar[3].n) for bar in bars] == [("measuring", "run", 6, 6)]
    advance()  # of no phase
    list(track([1], "after", "number"))
    assert [bar[0] for bar in bars] == ["measuring", "after"]


def test_a_phase_that_fails_is_over(bars: list[Any]) -> None:
    with pytest.raises(ValueError, match="broken"), phase("measuring", "run", 6):
        raise ValueError("broken")
    list(track([1], "after", "number"))
    assert [bar[0] for bar in bars] == ["measuring", "after"]


def test_what_is_done_at_once_needs_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    list(track(range(100), "counting", "number"))
    with phase("measuring", "run", 1):
        advance()
    assert capsys.readouterr().err == ""


def test_a_disabled_bar_is_silent(monkeypatch: pytest.MonkeyPatch, bars: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    """As in workers: `TQDM_DISABLE` in the environment of a process disables all of its bars."""
    recorded = progress.tqdm
    monkeypatch.setattr(progress, "tqdm", lambda **options: recorded(**options, disable=True))
    assert list(track([1, 2], "counting", "number")) == [1, 2]
    with phase("measuring", "run", 2):
        advance(2)
    assert len(bars) == 2
    assert capsys.readouterr().err == ""


def test_a_step_that_takes_long_is_shown_before_it_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A function that cannot tell how far it is, such as loading, says what it is at."""
    monkeypatch.setattr(progress, "_DELAY_SECONDS", 0.01)
    shown: list[str] = []

    @announced("loading", "model")
    def load(name: str, size: int = 1) -> int:
        end = time.monotonic() + 30
        while f"loading {name}:   0%" not in capture() and time.monotonic() < end:
            time.sleep(0.01)
        return size

    def capture() -> str:
        shown.append(capsys.readouterr().err)
        return "".join(shown)

    assert (load("large", size=3), load.__name__) == (3, "load")
    assert "loading large:   0%" in "".join(shown)
    shown.clear()
    assert load(name="small") == 1
    assert "loading small:   0%" in "".join(shown)
