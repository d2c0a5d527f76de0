"""Count the file operations of a process, so that it can be killed or refused at any of them.

Python's audit events see every open, rename, removal and new folder, whichever library asks for it; writes, `fsync`, safetensors and
Parquet are counted by replacing their functions. All of it is for a forked child: nothing is put back.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet
import safetensors.torch
from safetensors import SafetensorError

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_NEEDS_SPACE = ("open", "mkdir", "write", "tensors", "parquet")
BEFORE, HALFWAY, FULL = "before", "halfway", "full"


@dataclass(frozen=True)
class FaultPoint:
    """The file operation that is disturbed, and how.

    Args:
        number: number of the operation, from 0.
        action: `before` kills the process before the operation; `halfway` kills it after half of what it writes (before it, if it writes
            nothing); `full` fills the disk from this operation on.
    """

    number: int
    action: str

    def __str__(self) -> str:
        return f"{self.action} file operation {self.number}"


class Operations:
    """The file operations below a folder since `install`.

    Args:
        root: operations on other folders are not counted.
        point: what happens at one of them; None counts only.
    """

    def __init__(self, root: Path, point: FaultPoint | None = None) -> None:
        self.root, self.point = os.path.realpath(root), point
        self.names: list[str] = []

    def install(self) -> None:
        """Watch this process from now on."""
        sys.addaudithook(self._audit)
        io.open = self._watching(io.open)  # type: ignore[assignment]
        builtins.open = io.open
        os.fsync = self._before("fsync", os.fsync)
        safetensors.torch.serialize_file = self._tensors(safetensors.torch.serialize_file)
        writer = pyarrow.parquet.ParquetWriter
        for name in ("write_table", "close"):
            setattr(writer, name, self._before("parquet", getattr(writer, name)))

    def _is_below(self, path: Any, dir_fd: int = -1) -> bool:
        if isinstance(path, int):  # a file that is open already
            path = os.readlink(f"/proc/self/fd/{path}")
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        name = os.fsdecode(path)
        if dir_fd >= 0 and not os.path.isabs(name):
            name = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), name)
        return os.path.abspath(name).startswith(self.root)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if flags & _WRITING and not isinstance(path, int) and self._is_below(path):
                self.reach("open", path)
        elif event == "os.rename":
            if self._is_below(arguments[0]):
                self.reach("rename", arguments[0])
        elif event in ("os.remove", "os.rmdir", "os.mkdir"):
            if self._is_below(arguments[0], arguments[-1]):
                self.reach(event.removeprefix("os."), arguments[0])
        elif event == "os.link" and self._is_below(arguments[1]):
            self.reach("link", arguments[1])

    def reach(self, name: str, path: Any = "") -> bool:
        """Count an operation on a path and do what the point says; True where it is to be left half done.

        Raises:
            OSError: the disk is full.
        """
        number = len(self.names)
        self.names.append(f"{name} {path if isinstance(path, int) else os.fsdecode(path)}".strip())
        if self.point is None or number < self.point.number:
            return False
        if self.point.action == FULL:
            if name in _NEEDS_SPACE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return False
        if number == self.point.number:
            if self.point.action == HALFWAY and name in ("write", "tensors"):
                return True
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    def _before(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.reach(name)
            return function(*arguments, **options)

        return counted

    def _watching(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            stream = function(file, mode, *arguments, **options)
            if set(mode) & set("wax+") and self._is_below(file):
                stream.write = self._write(stream, file)
            return stream

        return opened

    def _write(self, stream: Any, path: Any) -> Callable[[Any], Any]:
        write = stream.write

        def counted(content: Any) -> Any:
            if self.reach("write", path):
                write(content[: len(content) // 2])
                stream.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            return write(content)

        return counted

    def _tensors(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(tensors: Any, filename: Any, *arguments: Any, **options: Any) -> Any:
            try:
                half = self.reach("tensors", filename)
            except OSError as error:  # as safetensors reports it, with what it had written by then
                function(tensors, filename, *arguments, **options)
                os.truncate(filename, os.path.getsize(filename) // 2)
                raise SafetensorError(
                    f"Error while serializing: I/O error: {error.strerror} (os error {error.errno})"
                ) from error
            result = function(tensors, filename, *arguments, **options)
            if half:
                os.truncate(filename, os.path.getsize(filename) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return counted
