"""A grid that is stopped goes on where it was."""

import signal
from pathlib import Path
from typing import Any

import pytest

from mtsae_lens.errors import ConfigError, TrainingInterrupted
from mtsae_lens.trials import run_trials


def counting(calls: list[str], name: str) -> Any:
    def compute() -> dict[str, Any]:
        calls.append(name)
        return {"value": len(calls)}

    return compute


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    calls: list[str] = []
    first = run_trials(tmp_path, {"a": 1}, {"x/0": counting(calls, "x/0")}, "test")
    second = run_trials(tmp_path, {"a": 1}, {"x/0": counting(calls, "x/0"), "x/1": counting(calls, "x/1")}, "test")
    assert calls == ["x/0", "x/1"]
    assert first["x/0"] == second["x/0"] == {"value": 1}


def test_a_trial_that_was_stopped_is_made_again_and_the_others_are_kept(tmp_path: Path) -> None:
    calls: list[str] = []

    def stopped() -> dict[str, Any]:
        raise TrainingInterrupted(signal.SIGTERM, "not saved")

    with pytest.raises(TrainingInterrupted, match="1 of 2 trials are done and kept") as caught:
        run_trials(tmp_path, {}, {"x": counting(calls, "x"), "y": stopped}, "test")
    assert caught.value.signal_number == signal.SIGTERM
    results = run_trials(tmp_path, {}, {"x": counting(calls, "x"), "y": counting(calls, "y")}, "test")
    assert calls == ["x", "y"]
    assert list(results) == ["x", "y"]


def test_a_trial_that_fails_leaves_no_result(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        run_trials(tmp_path, {}, {"x": lambda: {"value": float("nan")}}, "test")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["settings.json"]


def test_results_of_other_settings_are_refused(tmp_path: Path) -> None:
    run_trials(tmp_path, {"a": 1, "b": 2}, {}, "test")
    with pytest.raises(ConfigError, match=r"made with other settings \(a\)"):
        run_trials(tmp_path, {"a": 3, "b": 2}, {}, "test")
