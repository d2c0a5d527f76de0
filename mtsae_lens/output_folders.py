"""Create folders for results, check that they can be written, and let only one process write to each."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from errno import EACCES, EAGAIN
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, runtime_checkable

try:
    import fcntl
except ImportError:  # without it, the content of the lock file says which process holds the folder
    fcntl = None  # type: ignore[assignment]

from mtsae_lens.errors import OutputError
from mtsae_lens.files import clear_leftovers, create_folder, is_alive, remove_empty
from mtsae_lens.ranks import current_ranks

LOCK_FILE = ".mtsae.lock"
SETTINGS_FILE = "settings.json"

_held: dict[str, tuple[int, int]] = {}  # by real path: number of holds by this process, and the handle of the lock file
_registry = threading.Lock()

P = ParamSpec("P")
R = TypeVar("R")


@runtime_checkable
class _WithOut(Protocol):
    @property
    def out(self) -> Path: ...


S = TypeVar("S", bound=_WithOut)


def in_output_folder(run: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Decorate a function whose settings name a folder `out`, so that it holds this folder while it runs.

    Args:
        run: the function; its first argument is the settings.
    """

    @wraps(run)
    def run_holding(settings: S, *args: P.args, **kwargs: P.kwargs) -> R:
        with hold_output_folder(settings.out):
            return run(settings, *args, **kwargs)

    return run_holding


@contextmanager
def hold_output_folder(out: Path) -> Iterator[Path]:
    """Create a folder, check that it can be written before hours of work end in an error, and lock it against other processes.

    The same process may hold a folder several times. Of several ranks, the first one holds it for all. The lock ends when the process ends,
    for any reason. If the block fails and nothing was written, the folders that were created are removed again.

    Args:
        out: the folder.

    Raises:
        OutputError: the path is a file, the folder cannot be created or written, or another process holds it.
    """
    if not current_ranks().is_first:
        yield out
        return
    created: list[Path] = []
    try:
        created = create_folder(out)
        place = os.path.realpath(out)
        with _registry:
            count, handle = _held.get(place) or (0, _lock(out))
            _held[place] = (count + 1, handle)
    except OutputError:
        raise
    except OSError as error:
        remove_empty(created)
        raise OutputError(
            f"--out {out}: expected a writable folder, got {error.strerror}; give a folder that you may write to"
        ) from error
    try:
        clear_leftovers(out)
        yield out
    except BaseException:
        if out in created and _holds_nothing(out):
            shutil.rmtree(out, ignore_errors=True)
            remove_empty(created)
        raise
    finally:
        with _registry:
            count, handle = _held.pop(place)
            if count > 1:
                _held[place] = (count - 1, handle)
            else:
                _unlock(out, handle)


def check_output_folder(out: Path) -> None:
    """Check that a folder can be written, without leaving anything behind.

    Args:
        out: the folder.

    Raises:
        OutputError: see `hold_output_folder`.
    """
    with suppress(_Checked), hold_output_folder(out):
        raise _Checked


class _Checked(Exception):
    """Raised to end a check like a failure, so that the folder is removed again."""


def _holds_nothing(out: Path) -> bool:
    """Return whether no result was written; a settings file and empty files are not results."""
    files = (Path(place, name) for place, _, names in os.walk(out) for name in names)
    return not any(file.name not in (LOCK_FILE, SETTINGS_FILE) and file.lstat().st_size for file in files)


def _lock(out: Path) -> int:
    """Open and lock the lock file of a folder, and return its handle."""
    path = out / LOCK_FILE
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            if not _try_lock(handle):
                raise OutputError(_describe(out, _read_holder(handle)))
        except BaseException:
            os.close(handle)
            raise
        if _is_at(handle, path):
            try:
                _write_holder(handle)
            except BaseException:
                _unlock(out, handle)
                raise
            return handle
        os.close(handle)  # its last holder deleted the file between the two calls


def _try_lock(handle: int) -> bool:
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (EAGAIN, EACCES):
                return False
        else:
            return True
    # without locks in the file system, the content of the file decides
    holder = _read_holder(handle)
    elsewhere = holder.get("host") != socket.gethostname()
    return not holder or (not elsewhere and (holder["pid"] == os.getpid() or not is_alive(holder["pid"])))


def _write_holder(handle: int) -> None:
    now = datetime.now().astimezone().isoformat(" ", "seconds")
    about = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(about).encode(), 0)


def _read_holder(handle: int) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        holder = json.loads(os.pread(handle, 4096, 0))
        if isinstance(holder, dict) and isinstance(holder.get("pid"), int):
            return holder
    return {}


def _describe(out: Path, holder: dict[str, Any]) -> str:
    who = f"process {holder['pid']} on {holder.get('host')} since {holder.get('since')}" if holder else "another process"
    elsewhere = (
        holder.get("host", socket.gethostname()) != socket.gethostname()
    )  # a network file system may keep the locks of a machine that is gone
    ended = f" (delete {out / LOCK_FILE} if it has ended already)" if elsewhere else ""
    return (
        f"--out {out}: expected a free folder, got one that {who} writes to; wait for it to end{ended}, or give another --out"
    )


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


def _unlock(out: Path, handle: int) -> None:
    """Delete the lock file while it is held, then release it."""
    with suppress(OSError):
        if _is_at(handle, out / LOCK_FILE):
            (out / LOCK_FILE).unlink()
    os.close(handle)
