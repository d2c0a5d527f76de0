"""Files and folders appear whole or not at all, whatever goes wrong."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mtsae_lens.errors import OutputError
from mtsae_lens.files import prepare_output_dir, whole_file, whole_folder, write_json, write_tensors, write_text


def disk_full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_write_text_replaces(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    write_text(tmp_path / "a.txt", "n\u00e9w")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "n\u00e9w"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("place", ["os.fsync", "pathlib.Path.replace"])
def test_write_text_on_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    monkeypatch.setattr(place, disk_full)
    with pytest.raises(OutputError, match=r"a\.txt: cannot be written \(No space left on device\)"):
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
        with whole_folder(tmp_path / "f") as partial:
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
    with whole_folder(tmp_path / "f") as partial:
        (partial / "old").write_text("old")

    def fill() -> None:
        with whole_folder(tmp_path / "f") as partial:
            (partial / "half").write_text("half")
            raise raised

    with pytest.raises(expected):
        fill()
    assert [p.name for p in (tmp_path / "f").iterdir()] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_whole_folder_clears_what_a_kill_left(tmp_path: Path) -> None:
    (tmp_path / ".f.partial").mkdir()
    (tmp_path / ".f.partial" / "rest").write_text("")
    with whole_folder(tmp_path / "f") as partial:
        (partial / "new").write_text("")
    assert [p.name for p in (tmp_path / "f").iterdir()] == ["new"]


def test_prepare_output_dir(tmp_path: Path) -> None:
    assert prepare_output_dir(tmp_path / "a" / "b").is_dir()
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "sub"):
        with pytest.raises(OutputError, match=r"--out .*file.*cannot be written .*; give a folder that you may write to"):
            prepare_output_dir(out)


def test_prepare_output_dir_proves_that_it_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.NamedTemporaryFile", lambda **_: disk_full())
    with pytest.raises(OutputError, match="No space left"):
        prepare_output_dir(tmp_path)


def test_a_library_that_fails_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_text("old")

    def write(error: Exception | None) -> None:
        with whole_file(path) as partial:
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


def test_tensors(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", {"x": torch.arange(6).view(2, 3).T}, {"about": "y"})
    assert torch.equal(load_file(tmp_path / "a.safetensors")["x"], torch.arange(6).view(2, 3).T)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
