"""Test that a stopped grid resumes."""

import json
import multiprocessing
import os
import pickle
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from several_ranks import on_ranks

from mtsae_lens.errors import ConfigError, DataError, MTSAEWarning, TrainingInterrupted
from mtsae_lens.interruption import interrupt_on_signal
from mtsae_lens.ranks import current_ranks
from mtsae_lens.trials import run_trials, run_trials_by_settings


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

    with pytest.raises(TrainingInterrupted, match="1 of 2 trials are finished and kept") as caught:
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
    run_trials(tmp_path, {"a": 0}, {}, "test")  # no result yet: other settings may follow
    run_trials(tmp_path, {"a": 1, "b": 2}, {"x": counting([], "x")}, "test")
    with pytest.raises(ConfigError, match=r"made with other settings \(a\)"):
        run_trials(tmp_path, {"a": 3, "b": 2}, {}, "test")


@pytest.mark.parametrize("content", ["null", "[]", "{", '{"value": 2, "sha256": "0"}', ""])
def test_a_damaged_result_is_one_line_that_says_what_to_delete(content: str, tmp_path: Path) -> None:
    run_trials(tmp_path, {}, {"x/0": counting([], "x/0")}, "test")
    (tmp_path / "x__0.json").write_text(content)
    with pytest.raises(
        DataError, match=r"^[^\n]*x__0\.json: [^\n]*damaged[^\n]*; delete this file and run the same command again$"
    ):
        run_trials(tmp_path, {}, {"x/0": counting([], "x/0")}, "test")
    (tmp_path / "x__0.json").unlink()
    assert run_trials(tmp_path, {}, {"x/0": counting([], "x/0")}, "test") == {"x/0": {"value": 1}}


@pytest.mark.parametrize("damage", ["no digest", "a digest that is no text", "the settings"])
def test_a_result_without_its_digest_and_the_settings_in_its_place_are_damaged(damage: str, tmp_path: Path) -> None:
    """A result of version 0.1.0 has neither a digest nor a name, and is read."""
    settings = {"a": 1}
    run_trials(tmp_path, settings, {"x": counting([], "x")}, "test")
    path = tmp_path / "x.json"
    content = json.loads(path.read_text())
    if damage == "no digest":
        del content["sha256"]
    elif damage == "the settings":
        content = settings
    else:
        content["sha256"] = 7
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"x\.json: .*damaged.*delete this file"):
        run_trials(tmp_path, settings, {"x": counting([], "x")}, "test")


@pytest.mark.parametrize("content", ["null", "[]", "{", ""])
def test_damaged_settings_are_one_line_that_says_what_to_delete(content: str, tmp_path: Path) -> None:
    run_trials(tmp_path, {}, {"x": counting([], "x")}, "test")
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(
        DataError, match=r"^[^\n]*settings\.json: expected [^\n]*, got [^\n]*\(damaged\); delete the folder [^\n]*$"
    ):
        run_trials(tmp_path, {}, {"x": counting([], "x")}, "test")


def test_a_flipped_digit_of_a_result_is_told_and_results_from_before_are_read(tmp_path: Path) -> None:
    run_trials(tmp_path, {}, {"x": counting([], "x")}, "test")
    path = tmp_path / "x.json"
    path.write_text(path.read_text().replace('"value": 1', '"value": 3'))
    with pytest.raises(DataError, match="expected the content of its SHA-256, got other content"):
        run_trials(tmp_path, {}, {"x": counting([], "x")}, "test")
    path.write_text('{"value": 3}')
    assert run_trials(tmp_path, {}, {"x": counting([], "x")}, "test") == {"x": {"value": 3}}


@pytest.mark.parametrize("damage", ["another trial", "nothing"])
def test_a_result_of_another_trial_is_refused(tmp_path: Path, damage: str) -> None:
    trials = {name: counting([], name) for name in ("x/0", "x/1")}
    run_trials(tmp_path, {}, trials, "test")
    other = (tmp_path / "x__1.json").read_text() if damage == "another trial" else "{}"
    (tmp_path / "x__0.json").write_text(other)
    with pytest.raises(DataError, match=r"x__0\.json: expected the result of .*\(damaged\); delete this file"):
        run_trials(tmp_path, {}, trials, "test")


def test_a_result_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    trials = {"x/0": counting([], "x/0")}
    run_trials(tmp_path, {}, trials, "test")
    (tmp_path / "x__0.json").write_text('{"value": 7}')
    assert run_trials(tmp_path, {}, trials, "test") == {"x/0": {"value": 7}}


# trials with different settings ------------------------------------------------------------------------------------------


def test_only_trials_with_changed_settings_are_made_again_and_no_result_is_lost(tmp_path: Path) -> None:
    calls: list[str] = []
    trials = {name: counting(calls, name) for name in ("x/0", "y/0")}
    first = {"x/0": {"a": {"b": 1}, "c": [1, 2]}, "y/0": {"d": 1}}
    assert run_trials_by_settings(tmp_path, first, trials, "test") == {"x/0": {"value": 1}, "y/0": {"value": 2}}
    again = run_trials_by_settings(tmp_path, {**first, "x/0": {"c": (1, 2), "a": {"b": 1}}}, trials, "test")
    assert again == {"x/0": {"value": 1}, "y/0": {"value": 2}}  # order and tuples are those of JSON
    other = {**first, "x/0": {"a": {"b": 2}, "c": [1, 2]}}
    with pytest.warns(
        MTSAEWarning, match=r"1 of 2 trials have results with other settings only \(a\.b\); they are computed again"
    ):
        assert run_trials_by_settings(tmp_path, other, trials, "test") == {"x/0": {"value": 3}, "y/0": {"value": 2}}
    assert run_trials_by_settings(tmp_path, first, trials, "test") == {"x/0": {"value": 1}, "y/0": {"value": 2}}
    assert calls == ["x/0", "y/0", "x/0"]


def test_a_new_trial_or_a_name_that_begins_alike_is_no_warning(tmp_path: Path) -> None:
    run_trials_by_settings(tmp_path, {"x-1": {}}, {"x-1": counting([], "x-1")}, "test")
    names = ("x", "x-1", "x-1-2", "y")
    settings = {name: {"a": 1} if name != "x-1" else {} for name in names}
    done = run_trials_by_settings(tmp_path, settings, {n: counting([], n) for n in names}, "test")  # warnings are errors
    assert set(done) == set(names)


@pytest.mark.parametrize("old", ['{"value": 7}', '{"value": 7, "trial_name": "x"}', "damaged"])
def test_results_without_settings_are_kept_and_made_again_with_a_warning(tmp_path: Path, old: str) -> None:
    (tmp_path / "x.json").write_text(old)
    (tmp_path / "settings.json").write_text('{"a": 0}')
    with pytest.warns(MTSAEWarning, match=r"1 of 1 trials .* \(those of an earlier version\)"):
        assert run_trials_by_settings(tmp_path, {"x": {"a": 1}}, {"x": counting([], "x")}, "test") == {"x": {"value": 1}}
    assert (tmp_path / "x.json").read_text() == old


def test_a_result_under_the_name_of_other_settings_is_damaged(tmp_path: Path) -> None:
    trial = {"x": counting([], "x")}
    run_trials_by_settings(tmp_path, {"x": {"a": 1}}, trial, "test")
    (path,) = tmp_path.glob("x-*.json")
    content = path.read_text()
    with pytest.warns(MTSAEWarning, match=r"\(a\)"):
        run_trials_by_settings(tmp_path, {"x": {"a": 2}}, trial, "test")
    (other,) = set(tmp_path.glob("x-*.json")) - {path}
    other.write_text(content)
    with pytest.raises(
        DataError, match=r"x-.*json: expected the result with the settings of its name, .*damaged.*delete this file"
    ):
        run_trials_by_settings(tmp_path, {"x": {"a": 2}}, trial, "test")


# several processes: trials are functions of this module, so that they can be sent to them --------------------------------


def where(value: int) -> dict[str, Any]:
    """Where and how a trial runs."""
    bar = os.environ.get("TQDM_DISABLE")
    return {"value": value, "process": os.getpid(), "threads": torch.get_num_threads(), "bar": bar}


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 100
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def signal_the_parent_once(path: Path) -> dict[str, Any]:
    """As soon as another trial is kept; then computes until it is stopped."""
    wait_for(path)
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(100)
    return {"stopped": False}


def fail_once(path: Path) -> dict[str, Any]:
    wait_for(path)
    raise ValueError("broken")


def leave_a_mark(path: Path) -> dict[str, Any]:
    path.touch()
    time.sleep(0.3)
    return {}


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that need not import everything once more; the test of a signal starts them as they are started in earnest."""
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: fork)


@pytest.mark.usefixtures("forked")
def test_several_processes_give_all_results(tmp_path: Path) -> None:
    before = os.environ.get("TQDM_DISABLE")
    results = run_trials(tmp_path, {}, {f"x/{i}": partial(where, i) for i in range(6)}, "test", n_workers=2)
    assert {name: result["value"] for name, result in results.items()} == {f"x/{i}": i for i in range(6)}
    assert list(results) == [f"x/{i}" for i in range(6)]
    assert os.getpid() not in {result["process"] for result in results.values()}
    assert {result["threads"] for result in results.values()} == {max(1, (os.cpu_count() or 1) // 2)}
    assert {result["bar"] for result in results.values()} == {"1"}
    assert os.environ.get("TQDM_DISABLE") == before
    assert run_trials(tmp_path, {}, {f"x/{i}": where for i in range(6)}, "test") == results  # kept, not made again


def test_a_signal_stops_the_workers_and_keeps_what_is_done(tmp_path: Path) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stops, waits = partial(signal_the_parent_once, tmp_path / "x.json"), partial(wait_for, tmp_path / "never")
    trials = {"x": partial(where, 1), "y": stops, "z": waits}
    with pytest.raises(TrainingInterrupted, match="1 of 3 trials are finished and kept") as stopped:
        run_trials(tmp_path, {}, trials, "test", n_workers=2)
    assert stopped.value.signal_number == signal.SIGTERM
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert sorted(path.name for path in tmp_path.iterdir()) == ["settings.json", "x.json"]
    results = run_trials(tmp_path, {}, {name: partial(where, 2) for name in trials}, "test")
    assert [result["value"] for result in results.values()] == [1, 2, 2]


@pytest.mark.usefixtures("forked")
def test_a_trial_that_fails_ends_the_others(tmp_path: Path) -> None:
    """Those that have not begun are not made, as nobody would keep them."""
    out, marks = tmp_path / "out", [tmp_path / f"mark_{i}" for i in range(12)]
    trials = {"fails": partial(fail_once, marks[0])} | {f"x/{i}": partial(leave_a_mark, mark) for i, mark in enumerate(marks)}
    with pytest.raises(ValueError, match="broken"):
        run_trials(out, {}, trials, "test", n_workers=2)
    assert marks[0].exists()
    assert not marks[-1].exists()


def test_an_interruption_can_be_sent_between_processes() -> None:
    sent = pickle.loads(pickle.dumps(TrainingInterrupted(signal.SIGTERM, "saved")))
    assert type(sent) is TrainingInterrupted
    assert (sent.signal_number, str(sent)) == (signal.SIGTERM, "saved")


# ---------------------------------------------------------------------------------------------- several ranks


def recorded(folder: Path, name: str) -> Any:
    """Return a trial that notes in a file which rank has computed it, and that it works alone."""

    def compute() -> dict[str, Any]:
        folder.mkdir(exist_ok=True)
        with (folder / name).open("a") as file:
            file.write(f"{os.environ.get('RANK', 'none')} of {current_ranks().size}\n")
        return {"value": name}

    return compute


def shared_trials(tmp_path: Path, n: int) -> dict[str, dict[str, Any]]:
    names = [f"x{number}" for number in range(n)]
    return run_trials(tmp_path / "out", {"a": 1}, {name: recorded(tmp_path / "calls", name) for name in names}, "test")


def test_ranks_share_the_trials(tmp_path: Path) -> None:
    expected = {f"x{number}": {"value": f"x{number}"} for number in range(5)}

    def work() -> None:
        assert list(shared_trials(tmp_path, 5).items()) == list(expected.items())
        assert current_ranks().size == 2

    assert on_ranks(2, tmp_path / "ranks", work) == [(0, "")] * 2
    calls = {path.name: path.read_text() for path in (tmp_path / "calls").iterdir()}
    assert calls == {f"x{number}": f"{number % 2} of 1\n" for number in range(5)}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"settings.json", *(f"{name}.json" for name in expected)}


@pytest.mark.parametrize("n", [1, 3])
def test_trials_of_ranks_are_resumed_by_any_number_of_ranks(n: int, tmp_path: Path) -> None:
    assert on_ranks(2, tmp_path / "ranks", lambda: shared_trials(tmp_path, 3)) == [(0, "")] * 2
    if n == 1:
        shared_trials(tmp_path, 8)
    else:
        assert on_ranks(n, tmp_path / "more", lambda: shared_trials(tmp_path, 8)) == [(0, "")] * n
    calls = {path.name: path.read_text().splitlines() for path in (tmp_path / "calls").iterdir()}
    assert {name: len(lines) for name, lines in calls.items()} == {f"x{number}": 1 for number in range(8)}
    assert len({calls[f"x{number}"][0] for number in range(3, 8)}) == n


def test_a_rank_that_is_killed_ends_the_trials_and_finished_ones_are_kept(tmp_path: Path) -> None:
    def killed() -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    def work() -> None:
        trials = {name: recorded(tmp_path / "calls", name) for name in ("x0", "x1", "x2")} | {"x3": killed}
        run_trials(tmp_path / "out", {"a": 1}, trials, "test")

    first, second = on_ranks(2, tmp_path / "ranks", work)
    assert second == (-signal.SIGKILL, "")
    assert first[0] == 2
    assert first[1].startswith("a rank ended before the others")
    assert list(shared_trials(tmp_path, 4)) == ["x0", "x1", "x2", "x3"]
    assert {path.name: path.read_text().count("\n") for path in (tmp_path / "calls").iterdir()} == {
        f"x{number}": 1 for number in range(4)
    }


def test_results_of_other_settings_are_refused_once_for_all_ranks(tmp_path: Path) -> None:
    shared_trials(tmp_path, 1)
    ended = on_ranks(2, tmp_path / "ranks", lambda: run_trials(tmp_path / "out", {"a": 2}, {}, "test"))
    assert [code for code, _ in ended] == [2, 2]
    (told,) = [text for _, text in ended if text]
    assert "made with other settings (a)" in told


def test_a_signal_ends_the_wait_for_other_ranks(tmp_path: Path) -> None:
    """All ranks get the signal, as `torchrun` sends it: the one that waits and the one that computes."""

    def slow() -> dict[str, Any]:
        (tmp_path / "begun").touch()
        time.sleep(60)
        return {}

    def work() -> None:
        (tmp_path / f"pid{current_ranks().rank}").write_text(str(os.getpid()))
        with interrupt_on_signal("kept", keep_inner_message=True):
            run_trials(tmp_path / "out", {}, {"x0": counting([], "x0"), "x1": slow}, "test")

    def stop_both() -> None:
        deadline = time.monotonic() + 30
        while not ((tmp_path / "begun").exists() and (tmp_path / "out" / "x0.json").exists()) and time.monotonic() < deadline:
            time.sleep(0.05)
        for rank in range(2):
            os.kill(int((tmp_path / f"pid{rank}").read_text()), signal.SIGTERM)

    stopper = threading.Thread(target=stop_both)
    stopper.start()
    first, second = on_ranks(2, tmp_path / "ranks", work)
    stopper.join()
    assert first == (2, "kept")
    assert second == (128 + signal.SIGTERM, "")
