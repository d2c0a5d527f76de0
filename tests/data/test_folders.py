"""Test folders: links are followed once, hidden files are not read, and files that are left out are reported."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from mtsae_lens.data import folders
from mtsae_lens.data.folders import files_in, scan_folder
from mtsae_lens.data.text_files import read_texts
from mtsae_lens.errors import DataError


def write(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}")
    return folder


def names(folder: Path) -> list[str]:
    return [str(file.relative_to(folder)) for file in files_in(folder)]


def test_linked_folders_and_files_are_read_and_loops_end(tmp_path: Path) -> None:
    store, folder = write(tmp_path / "store", "big.txt", "deep/small.txt"), write(tmp_path / "d", "own.txt")
    write(tmp_path, "single.txt")
    (folder / "part").symlink_to(store)
    (folder / "one.txt").symlink_to(tmp_path / "single.txt")
    (store / "deep" / "back").symlink_to(folder)
    (folder / "self").symlink_to(folder)
    assert names(folder) == ["one.txt", "own.txt", "part/big.txt", "part/deep/small.txt"]


def test_a_text_with_two_names_is_read_once(tmp_path: Path) -> None:
    write(tmp_path, "z/a.txt", "own.txt")
    (tmp_path / "a-link").symlink_to(tmp_path / "z")
    (tmp_path / "b.txt").symlink_to(tmp_path / "own.txt")
    assert names(tmp_path) == ["own.txt", "z/a.txt"]
    assert scan_folder(tmp_path).skipped == {"the same as another one": ["a-link", "b.txt"]}


def test_what_is_left_out_is_told_once_with_its_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "a.txt", "c.csv", "d.json", "e.md", "f.csv", "._a.txt", ".hidden/b.txt")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"packed"))
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    assert list(read_texts(tmp_path)) == list(read_texts(tmp_path)) == ["text of a.txt", "packed"]
    (told,) = [record.getMessage() for record in caplog.records]
    for part in (
        "'c.csv', 'd.json', 'e.md' and 1 more (not .txt, .jsonl, .parquet",
        "'._a.txt', '.hidden' (hidden)",
        "'gone.txt' (a broken link)",
        "'pipe.txt' (not a regular file)",
    ):
        assert part in told
    assert told.startswith(f"warning: {tmp_path}: not read: ")


def test_a_folder_without_texts_says_what_is_in_it(tmp_path: Path) -> None:
    write(tmp_path, "c.csv", ".a.txt")
    with pytest.raises(DataError, match=r".txt, .jsonl, .parquet files, got none .not read: '.a.txt' .hidden.; 'c.csv'"):
        list(read_texts(tmp_path))


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.txt", "closed/b.txt", "c.txt")
    listed, access = Path.iterdir, os.access

    def iterdir(path: Path):
        if path.name == "closed":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)  # whoever runs the tests may be allowed everything
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "c.txt" and access(path, mode))
    found = scan_folder(tmp_path)
    assert found.files == [tmp_path / "a.txt"]
    assert found.skipped == {"cannot be read: Permission denied": ["c.txt", "closed"]}
    with pytest.raises(DataError, match="closed: expected a readable folder, got the error Permission denied"):
        scan_folder(tmp_path / "closed")


def test_a_folder_of_everything_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        DataError, match="/: expected a folder of texts, got the root of the file system; give the folder that holds the texts"
    ):
        files_in(Path("/"))
    write(tmp_path, *(f"{number}/{number}.csv" for number in range(60)), "a.txt")
    assert len(files_in(tmp_path)) == 1
    monkeypatch.setattr(folders, "_HOPELESS", 50)
    with pytest.raises(DataError, match=r"0 texts among its first 5\d files and folders|give the folder that holds the texts"):
        files_in(tmp_path)
    many = write(tmp_path / "many", *(f"{number}.txt" for number in range(80)))
    assert len(files_in(many)) == 80
