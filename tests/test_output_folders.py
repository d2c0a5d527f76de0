"""Test that a folder for results is created, checked and held by one process, and that a failure leaves no empty folder."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtsae_lens import output_folders
from mtsae_lens.errors import OutputError
from mtsae_lens.output_folders import LOCK_FILE, check_output_folder, hold_output_folder, in_output_folder


def in_another_process(action: Callable[[], None]) -> str:
    """Run a function in a separate process, and return the OutputError that it raised, or nothing."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            output_folders._held.clear()  # a fork would believe that it holds what its parent holds
            action()
        except OutputError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


def hold(out: Path) -> None:
    with hold_output_folder(out):
        (out / "result").write_text("x")


def test_a_second_process_is_told_who_writes(tmp_path: Path) -> None:
    with hold_output_folder(tmp_path / "out") as out:
        said = in_another_process(lambda: hold(out))
        assert (
            f"--out {out}: expected a free folder, got one that process {os.getpid()} on {os.uname().nodename} since 2" in said
        )
        assert said.endswith("wait for it to end, or give another --out")
        assert "\n" not in said
        (out / "result").write_text("mine")
    assert [p.name for p in out.iterdir()] == ["result"]
    assert in_another_process(lambda: hold(out)) == ""
    assert (out / "result").read_text() == "x"


def test_a_process_may_hold_a_folder_several_times_and_folders_below(tmp_path: Path) -> None:
    with hold_output_folder(tmp_path / "out") as out:
        (tmp_path / "x").mkdir()
        with hold_output_folder(tmp_path / "x" / ".." / "out"):
            hold(out / "below")
        assert "expected a free folder" in in_another_process(lambda: hold(out))
        assert in_another_process(lambda: hold(out / "below")) == ""
    assert in_another_process(lambda: hold(out)) == ""


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def hold_and_die() -> None:
        with hold_output_folder(out):
            os.kill(os.getpid(), signal.SIGKILL)

    in_another_process(hold_and_die)
    assert (out / LOCK_FILE).exists()
    hold(out)
    assert [p.name for p in out.iterdir()] == ["result"]


@pytest.mark.parametrize(
    ("holder", "free"),
    [
        ({"pid": 2**22 + 1, "host": os.uname().nodename}, True),  # beyond the largest process id of Linux
        ({"pid": os.getppid(), "host": os.uname().nodename}, False),
        ({"pid": 2**22 + 1, "host": "elsewhere"}, False),
        (None, True),
    ],
    ids=["ended", "alive", "on another machine", "unreadable"],
)
def test_where_the_file_system_has_no_locks_the_file_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holder: dict[str, Any] | None, free: bool
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", unsupported)
    (tmp_path / LOCK_FILE).write_text(json.dumps(holder) if holder else "{")
    if free:
        hold(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["result"]
    else:
        assert holder is not None
        with pytest.raises(OutputError, match=f"got one that process {holder['pid']} on {holder['host']}") as refused:
            hold(tmp_path)
        assert ("if it has ended already" in str(refused.value)) == (holder["host"] == "elsewhere")
        assert (tmp_path / LOCK_FILE).exists()


def fail(out: Path, *files: tuple[str, str]) -> None:
    with hold_output_folder(out):
        for name, content in files:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text(content)
        raise ZeroDivisionError


def test_a_failure_leaves_no_empty_folder(tmp_path: Path) -> None:
    for files in ([], [("log.jsonl", "")], [("settings.json", "{}"), ("state/settings.json", "{}")]):
        with pytest.raises(ZeroDivisionError):
            fail(tmp_path / "a" / "b" / "c", *files)
        assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_results_and_what_was_there_before(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        fail(tmp_path / "a" / "b", ("state/part", "result"))
    assert (tmp_path / "a" / "b" / "state" / "part").read_text() == "result"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ZeroDivisionError):
        fail(tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_check_leaves_nothing(tmp_path: Path) -> None:
    check_output_folder(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    with hold_output_folder(tmp_path / "held") as out:
        check_output_folder(out)
        assert "expected a free folder" in in_another_process(lambda: check_output_folder(out))


def test_folders_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "file/sub", "loop", "dangling", "n" * 300, "new/" + "n" * 300):
        with pytest.raises(
            OutputError, match=r"^--out .*: expected a writable folder, got .*; give a folder that you may write to$"
        ):
            hold(tmp_path / name)
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(OutputError, match="expected a writable folder"):
        hold(Path("out"))
    monkeypatch.chdir(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"file", "loop", "dangling"}


def test_a_full_disk_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(OutputError, match="No space left"):
        hold(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_planted_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOCK_FILE).symlink_to(tmp_path / "precious")
    with pytest.raises(OutputError, match="expected a writable folder"):
        hold(tmp_path / "out")
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_function_that_holds_the_folder_of_its_settings(tmp_path: Path) -> None:
    class Settings:
        out = tmp_path / "out"

    @in_output_folder
    def run(settings: Settings, *, more: int) -> int:
        """Return the number of results."""
        assert "expected a free folder" in in_another_process(lambda: hold(settings.out))
        return more

    assert run(Settings(), more=3) == 3
    assert run.__doc__ == "Return the number of results."
