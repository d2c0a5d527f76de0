"""Test that files and folders appear whole or not at all, for every kind of failure."""

from __future__ import annotations

import errno
import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from mtsae_lens.errors import OutputError
from mtsae_lens.files import clear_leftovers, write_json, write_text, write_whole_file, write_whole_folder


def disk_full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_write_text_replaces(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    write_text(tmp_path / "a.txt", "n\u00e9w")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "n\u00e9w"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("place", ["os.fsync", "os.replace"])
def test_write_text_on_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    monkeypatch.setattr(place, disk_full)
    with pytest.raises(OutputError, match=r"a\.txt: expected to write this file, got No space left on device"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_write_text_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "a.txt", "new")
    assert list(tmp_path.iterdir()) == []


def test_write_text_below_a_file_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_text(tmp_path / "file" / "a.txt", "x")


def test_write_json_is_strict(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []
    write_json(tmp_path / "a.json", {"x": 1.5})
    assert (tmp_path / "a.json").read_text() == '{\n "x": 1.5\n}\n'


def test_whole_folder_replaces(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with write_whole_folder(tmp_path / "f") as partial:
            assert partial.is_dir()
            (partial / name).write_text(name)
            assert name == "old" or (tmp_path / "f" / "old").exists()  # there until the new one is whole
    assert [p.name for p in (tmp_path / "f").iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), OutputError),
        (ValueError("x"), ValueError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), OutputError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_whole_folder_that_fails_leaves_what_was_there(tmp_path: Path, raised: BaseException, expected: type) -> None:
    with write_whole_folder(tmp_path / "f") as partial:
        (partial / "old").write_text("old")

    def fill() -> None:
        with write_whole_folder(tmp_path / "f") as partial:
            (partial / "half").write_text("half")
            raise raised

    with pytest.raises(expected):
        fill()
    assert [p.name for p in (tmp_path / "f").iterdir()] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_whole_folder_clears_what_a_kill_left(tmp_path: Path) -> None:
    (tmp_path / ".f.partial").mkdir()
    (tmp_path / ".f.partial" / "rest").write_text("")
    with write_whole_folder(tmp_path / "f") as partial:
        (partial / "new").write_text("")
    assert [p.name for p in (tmp_path / "f").iterdir()] == ["new"]


def test_a_library_that_fails_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_text("old")

    def write(error: Exception | None) -> None:
        with write_whole_file(path) as partial:
            partial.write_text("new")
            if error is not None:
                raise error

    failures: list[tuple[Exception, type[Exception]]] = [
        (SafetensorError("full"), OutputError),
        (OSError("full"), OutputError),
        (ValueError("x"), ValueError),
    ]
    for error, expected in failures:
        with pytest.raises(expected):
            write(error)
        assert [p.name for p in tmp_path.iterdir()] == ["a.parquet"]
        assert path.read_text() == "old"
    write(None)
    assert path.read_text() == "new"


# what is killed ----------------------------------------------------------------------------------------------------------


def run_and_kill(action: Callable[[], None]) -> None:
    """Run a function in a separate process that kills itself, as `kill -9` would."""
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(99)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def replace_folder(path: Path, content: str) -> None:
    with write_whole_folder(path) as partial:
        (partial / "content").write_text(content)


@pytest.mark.parametrize("killed_at", range(1, 4))
def test_a_folder_that_is_replaced_is_never_lost(tmp_path: Path, killed_at: int) -> None:
    """Killed before the first rename, between the two, and after both."""
    path = tmp_path / "f"
    replace_folder(path, "old")

    def replace_and_die() -> None:
        rename, calls = os.rename, []

        def counted(source: Path, target: Path) -> None:
            calls.append(source)
            if len(calls) == killed_at:
                die()
            rename(source, target)

        os.rename = counted  # type: ignore[assignment]
        if killed_at == 3:
            import shutil

            shutil.rmtree = die  # type: ignore[assignment]
        replace_folder(path, "new")

    run_and_kill(replace_and_die)
    left = sorted(p.name for p in tmp_path.iterdir())
    assert all(name == "f" or name.endswith((".partial", ".old")) for name in left)
    clear_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert (path / "content").read_text() == ("new" if killed_at == 3 else "old")
    replace_folder(path, "newer")
    assert (path / "content").read_text() == "newer"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_second_rename_that_fails_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_folder(tmp_path / "f", "old")
    rename = os.rename
    monkeypatch.setattr(
        "os.rename", lambda source, target: disk_full() if str(source).endswith("partial") else rename(source, target)
    )
    with pytest.raises(OutputError, match="No space left"):
        replace_folder(tmp_path / "f", "new")
    assert (tmp_path / "f" / "content").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_what_a_killed_process_left_is_deleted_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    def write_and_die() -> None:
        with write_whole_file(tmp_path / "a.bin") as partial:
            partial.write_text("half")
            die()

    run_and_kill(write_and_die)
    assert [p.suffix for p in tmp_path.iterdir()] == [".partial"]
    with write_whole_file(tmp_path / "b.bin") as mine:  # in another process of this machine, and in this one
        mine.write_text("mine")
        ours = mine.parent
        other = tmp_path / f".c.bin.{ours.name.split('.')[-2].split('-')[0]}-{os.getppid()}-01234567.partial"
        elsewhere = tmp_path / ".d.bin.ffffffff-1-01234567.partial"
        other.write_text("another process writes this")
        elsewhere.write_text("on another machine")
        write_text(tmp_path / "c.bin", "done")
        assert {p.name for p in tmp_path.iterdir()} == {ours.name, other.name, elsewhere.name, "c.bin"}
    assert (tmp_path / "b.bin").read_text() == "mine"


@pytest.mark.parametrize("length", [1, 180, 181, 250])
def test_long_names(tmp_path: Path, length: int) -> None:
    name = "\u00e9" * (length // 2) + "a" * (length % 2)
    write_text(tmp_path / name, "x")
    replace_folder(tmp_path / f"{name}b", "y")
    replace_folder(tmp_path / f"{name}b", "z")
    assert {p.name for p in tmp_path.iterdir()} == {name, f"{name}b"}


# who may read, and what is followed --------------------------------------------------------------------------------------


@pytest.fixture(params=[0o002, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_files_get_the_permissions_of_the_umask(tmp_path: Path, umask: int) -> None:
    def write_privately(path: Path) -> None:
        path.write_text("x")
        path.chmod(0o600)  # as tempfile does, and libraries that use it

    write_text(tmp_path / "a", "x")
    with write_whole_file(tmp_path / "b") as partial:
        write_privately(partial)
    with write_whole_folder(tmp_path / "c") as folder:
        (folder / "deep").mkdir()
        write_privately(folder / "deep" / "d")
    for name in ("a", "b", "c/deep/d"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask
    for name in ("c", "c/deep"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o777 & ~umask


def test_a_planted_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / ".a.txt.partial").symlink_to(tmp_path / "precious")
    write_text(tmp_path / "a.txt", "x")
    assert (tmp_path / "precious").read_text() == "kept"
    monkeypatch.setattr("secrets.token_hex", lambda n: "01234567")  # even if its name could be known
    host = "0" * 8
    monkeypatch.setattr("mtsae_lens.files._HOST", host)
    link = tmp_path / f".b.txt.{host}-{os.getpid()}-01234567.partial"
    monkeypatch.setattr("mtsae_lens.files.clear_leftovers", lambda folder: None)
    link.symlink_to(tmp_path / "precious")
    with pytest.raises(OutputError, match="File exists"):
        write_text(tmp_path / "b.txt", "x")
    assert (tmp_path / "precious").read_text() == "kept"


def test_two_processes_that_write_one_file_never_tear_it(tmp_path: Path) -> None:
    path = tmp_path / "shared.txt"
    contents = {letter: letter * 100_000 for letter in "ab"}
    children = []
    for text in contents.values():
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for _ in range(50):
                    write_text(path, text)
                    if path.read_text() not in contents.values():
                        os._exit(2)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["shared.txt"]


def test_folders_that_were_created_for_a_failed_file_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.replace", disk_full)
    with pytest.raises(OutputError):
        write_text(tmp_path / "new" / "deep" / "a.txt", "x")
    assert list(tmp_path.iterdir()) == []
