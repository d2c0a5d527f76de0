"""Write files and folders completely or not at all, so that they survive a power failure, with the permissions of the umask.

While it is written, a file or folder has a temporary name, `.NAME.HOST-PID-RANDOM.partial`, so two processes never share one. A folder
that is replaced is first renamed to `.NAME.HOST-PID-RANDOM.old`. If a process is killed, the next process that writes in the same place
restores a lost folder and deletes the other leftovers; it does not touch the files of running processes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mtsae_lens.errors import OutputError

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}\.(?P<kind>partial|old)")
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_LONGEST_NAME = 180  # bytes; a file name may have 255, and the rest of the partial name needs up to 45
_in_use: set[Path] = set()  # partial files and folders of this process


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8.

    Args:
        path: the file.
        text: its content.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, then rename it.

    Args:
        path: the file.
        content: its content.

    Raises:
        OutputError: the file cannot be written; an existing file is unchanged.
    """
    with _naming_the_file(path), _partial_path(path) as partial:
        with os.fdopen(_create_file(partial), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)


def write_json(path: Path, content: Any) -> None:
    """Write strict JSON, in which NaN is an error.

    Args:
        path: the file.
        content: a value that JSON can hold.
    """
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


@contextmanager
def write_whole_file(path: Path) -> Iterator[Path]:
    """Yield a path for a library to write to; the file appears at `path` only if the block ends without an error.

    Args:
        path: the file.

    Raises:
        OutputError: the file cannot be written; an existing file is unchanged.
    """
    with _naming_the_file(path), _partial_path(path) as folder:
        folder.mkdir()  # a library may write further files next to the one that it is given
        partial = folder / path.name
        yield partial
        _settle(folder)
        os.replace(partial, path)
        sync_folder(path.parent)


@contextmanager
def write_whole_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to fill; it appears at `path`, replacing an existing folder, only if the block ends without an error.

    If the process is killed between the two renames, the old folder remains next to its place, and the next writer restores it.

    Args:
        path: the folder.

    Raises:
        OutputError: the folder cannot be written; an existing folder is unchanged.
    """
    with _naming_the_file(path), _partial_path(path) as partial:
        partial.mkdir()
        yield partial
        _settle(partial)
        with _set_aside(path):
            os.rename(partial, path)
        sync_folder(path.parent)


def create_folder(folder: Path) -> list[Path]:
    """Create a folder and its parents.

    Args:
        folder: the folder.

    Returns:
        The folders that did not exist before, the outermost first.

    Raises:
        OSError: the path is a file, or the folder cannot be created; then nothing is created.
    """
    missing: list[Path] = []
    for place in (folder, *folder.parents):
        if place.exists():
            break
        missing.append(place)
    created: list[Path] = []
    try:
        for place in reversed(missing):
            place.mkdir(exist_ok=True)
            created.append(place)
        folder.mkdir(exist_ok=True)  # it may be a file
    except OSError:
        remove_empty(created)
        raise
    return created


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders that are empty, the last one first.

    Args:
        folders: the folders.
    """
    for folder in reversed(folders):
        with suppress(OSError):
            folder.rmdir()


def clear_leftovers(folder: Path) -> None:
    """Delete what killed processes left incomplete in a folder, and restore folders that they were replacing.

    Args:
        folder: the folder that contains the leftovers.
    """
    with suppress(OSError):
        leftovers = [(Path(entry.path), _LEFTOVER.fullmatch(entry.name)) for entry in os.scandir(folder)]
        # renamed folders come first, because one is lost if its place is empty
        for path, match in sorted(leftovers, key=lambda found: found[1] is not None and found[1]["kind"] != "old"):
            if match is None or not _is_abandoned(path, match):
                continue
            place = folder / match["name"]
            if match["kind"] == "old" and not os.path.lexists(place):
                os.rename(path, place)
            else:
                _delete(path)


def is_alive(pid: int) -> bool:
    """Return whether a process of this machine exists.

    Args:
        pid: id of the process.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # it belongs to another user
    return True


def _is_abandoned(path: Path, match: re.Match[str]) -> bool:
    if match["host"] != _HOST:
        return False  # processes of other machines cannot be looked up
    pid = int(match["pid"])
    return path not in _in_use if pid == os.getpid() else not is_alive(pid)


@contextmanager
def _naming_the_file(path: Path) -> Iterator[None]:
    try:
        yield
    except OutputError:
        raise
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{path}: expected to write this file, got {reason}; free space or give another folder") from error


@contextmanager
def _partial_path(path: Path) -> Iterator[Path]:
    """Yield a name next to `path` that no other process uses, and delete what has this name at the end."""
    created = create_folder(path.parent)
    clear_leftovers(path.parent)
    old_style = path.with_name(f".{path.name}.partial")  # as earlier versions of this package named them
    partial = _named_beside(path, "partial")
    _in_use.add(partial)
    try:
        with suppress(OSError):
            _delete(old_style)
        yield partial
    finally:
        with suppress(OSError):
            _delete(partial)
        _in_use.discard(partial)
        remove_empty(created)


def _named_beside(path: Path, kind: str) -> Path:
    name = path.name
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = (
            os.fsencode(name)[: _LONGEST_NAME - 9].decode(errors="ignore") + "-" + hashlib.sha256(name.encode()).hexdigest()[:8]
        )
    return path.parent / f".{name}.{_HOST}-{os.getpid()}-{secrets.token_hex(4)}.{kind}"


@contextmanager
def _set_aside(path: Path) -> Iterator[None]:
    """Rename an existing file or folder at `path`, and delete it at the end, or restore it if the block fails."""
    old = _named_beside(path, "old")
    _in_use.add(old)
    try:
        try:
            os.rename(path, old)
        except FileNotFoundError:
            yield
            return
        try:
            yield
        except BaseException:
            os.rename(old, path)
            raise
        _delete(old)
    finally:
        _in_use.discard(old)


def _create_file(path: Path) -> int:
    """Create a new file with the permissions of the umask; a symbolic link of that name is not followed."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _settle(folder: Path) -> None:
    """Give every file below a folder the permissions of the umask, and flush everything to the disk."""
    probe = folder / f".{secrets.token_hex(4)}"
    handle = _create_file(probe)
    mode = stat.S_IMODE(os.fstat(handle).st_mode)
    os.close(handle)
    probe.unlink()
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            if path.is_symlink():
                continue
            if (
                stat.S_IMODE(path.stat().st_mode) != mode
            ):  # some file systems have one mode for all files and refuse to change it
                path.chmod(mode)
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(Path(place))


def sync_folder(folder: Path) -> None:
    """Flush the entries of a folder to the disk, if the system can.

    Args:
        folder: the folder.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # the folder cannot be read, or the system cannot open folders
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
