"""Choose which files of a folder are read as text, and record why the others are not."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mtsae_lens.data.notices import tell_once
from mtsae_lens.errors import DataError

SUFFIXES = (".txt", ".jsonl", ".parquet")
COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}

_LARGE = 5_000  # entries of a folder after which a message says that the search takes long
_HOPELESS = 20_000  # entries after which the search ends with an error if nearly none of them is a text
_N_SHOWN = 3  # names listed for each reason


def text_suffix(path: Path) -> str | None:
    """Return the suffix that decides how a file is read, without the suffix of its compression; None if the file is not read.

    Args:
        path: the file, which need not exist.
    """
    name = path.name.lower()
    for compressed in COMPRESSED:
        if name.endswith(compressed):
            suffix = Path(name.removesuffix(compressed)).suffix
            return suffix if suffix in (".txt", ".jsonl") else None
    suffix = Path(name).suffix
    return suffix if suffix in SUFFIXES else None


def list_suffixes() -> str:
    """Return the suffixes that are read, as text for an error."""
    return f"{', '.join(SUFFIXES)} (.txt and .jsonl also compressed: {', '.join(COMPRESSED)})"


def files_in(path: Path) -> list[Path]:
    """Return a file itself, or the text files of a folder in sorted order.

    The files of a folder that are not read are reported once.

    Args:
        path: a file or a folder.

    Returns:
        Paths of the files to read; empty if the folder holds no texts.

    Raises:
        DataError: the folder cannot be read, or it holds nearly no texts among very many files.
    """
    if not path.is_dir():
        return [path]
    found = scan_folder(path)
    if found.files and found.skipped:
        tell_once(f"{path}: not read: {found.describe_skipped()}")
    return found.files


@dataclass
class FolderFiles:
    """The files of a folder that are read, and the names of those that are not, by reason."""

    files: list[Path] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def skip(self, path: Path, folder: Path, reason: str) -> None:
        """Record that a file or folder is left out, with the reason.

        Args:
            path: the file or folder.
            folder: the folder that is searched.
            reason: the reason in words.
        """
        self.skipped.setdefault(reason, []).append(str(path.relative_to(folder)))

    def describe_skipped(self) -> str:
        """Return one line that lists what is left out, by reason."""
        return "; ".join(f"{_list_names(names)} ({reason})" for reason, names in self.skipped.items())


def _list_names(names: Iterable[str]) -> str:
    names = sorted(names)
    more = len(names) - _N_SHOWN
    return ", ".join(map(repr, names[:_N_SHOWN])) + (f" and {more:,} more" if more > 0 else "")


def scan_folder(folder: Path) -> FolderFiles:
    """Find the text files of a folder and of its subfolders, symbolic links included.

    Hidden files and folders are left out. A file or folder that several names lead to is read once, so a loop of links ends.

    Args:
        folder: the folder to search.

    Returns:
        The files that are read and those that are not.

    Raises:
        DataError: see `files_in`.
    """
    if folder.resolve() == Path(folder.resolve().anchor):
        raise DataError(
            f"{folder}: expected a folder of texts, got the root of the file system; give the folder that holds the texts"
        )
    found, seen, n_entries = FolderFiles(), set[tuple[int, int]](), 0
    pending, links = deque([folder]), deque[Path]()
    while pending or links:  # links come last, so that a file is listed under its own name where it has one in this folder
        path = pending.popleft() if pending else links.popleft()
        try:
            about = path.stat()
            kind = (about.st_dev, about.st_ino)
            if kind in seen:
                found.skip(path, folder, "the same as another one")
                continue
            if stat.S_ISDIR(about.st_mode):
                seen.add(kind)
                entries = sorted(path.iterdir())
                n_entries += len(entries)
                for entry in entries:
                    if entry.name.startswith("."):
                        found.skip(entry, folder, "hidden")
                    else:
                        (links if entry.is_symlink() else pending).append(entry)
            elif _is_read(path, folder, about, found):
                seen.add(kind)
                found.files.append(path)
        except OSError as error:
            if path == folder:
                raise DataError(
                    f"{path}: expected a readable folder, got the error {error.strerror or error}; check its path and permissions"
                ) from error
            found.skip(path, folder, _reason(path, error))
        _check_size(folder, n_entries, len(found.files), len(pending))
    found.files.sort()
    return found


def _is_read(path: Path, folder: Path, about: os.stat_result, found: FolderFiles) -> bool:
    """Return whether a file is read; if it is not, record the reason."""
    if text_suffix(path) is None:
        found.skip(path, folder, f"not {', '.join(SUFFIXES)} or one of the first two compressed")
    elif not stat.S_ISREG(about.st_mode):
        found.skip(path, folder, "not a regular file")
    elif not os.access(path, os.R_OK):
        found.skip(path, folder, "cannot be read: Permission denied")
    else:
        return True
    return False


def _reason(path: Path, error: OSError) -> str:
    if path.is_symlink() and isinstance(error, FileNotFoundError):
        return "a broken link"
    return f"cannot be read: {error.strerror or error}"


def _check_size(folder: Path, n_entries: int, n_files: int, n_left: int) -> None:
    if n_entries >= _LARGE:
        tell_once(f"{folder}: looking through thousands of files for texts; Ctrl-C ends it", about=f"size of {folder}")
    if n_entries - n_left >= _HOPELESS and n_files * 100 < n_entries - n_left:
        raise DataError(
            f"{folder}: expected a folder of texts, got {n_files:,} texts among its first {n_entries - n_left:,} files and folders; give the "
            "folder that holds the texts"
        )
