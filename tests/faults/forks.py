"""Fork processes that have imported everything and loaded the language model, so that a trial does not take ten seconds to start."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

UNCAUGHT = 99  # exit code of a child that an exception ended
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Ended:
    """How a process ended and what it wrote."""

    code: int | None
    """None where a signal ended it."""
    signal_number: int | None
    timed_out: bool
    out: str
    err: str


class Child:
    """A forked process in a separate folder.

    Args:
        call: the function to run; a `SystemExit` gives its exit code, another exception its traceback and `UNCAUGHT`.
        folder: its working directory.
        name: name of the files next to `folder` that receive stdout and stderr.
    """

    def __init__(self, call: Callable[[], object], folder: Path, name: str = "child") -> None:
        self._out, self._err = (folder.parent / f"{folder.name}.{name}.{stream}" for stream in ("out", "err"))
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            self._be_the_child(call, folder, parent)

    def _be_the_child(self, call: Callable[[], object], folder: Path, parent: int) -> None:
        code = UNCAUGHT
        try:
            die_with(parent)
            for stream, path in ((1, self._out), (2, self._err)):
                opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(opened, stream)
                os.close(opened)
            # another may have taken the place of these two
            sys.stdout, sys.stderr = (open(stream, "w", closefd=False) for stream in (1, 2))  # noqa: SIM115
            os.chdir(folder)
            torch.set_num_threads(1)  # make torch's pool anew here: two threads that load weights would race for it
            call()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except (OSError, ValueError):
                    code = code or UNCAUGHT
            os._exit(code)

    def wait(self, seconds: float) -> Ended:
        """Wait for the end, and end it by force when the time is over."""
        deadline, timed_out, pause = time.monotonic() + seconds, False, 0.001
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > deadline:
                timed_out = True
                os.kill(self.pid, signal.SIGKILL)
                _, status = os.waitpid(self.pid, 0)
                break
            time.sleep(pause)
            pause = min(0.05, 1.5 * pause)
        killed = os.WIFSIGNALED(status)
        return Ended(
            code=None if killed else os.WEXITSTATUS(status),
            signal_number=os.WTERMSIG(status) if killed else None,
            timed_out=timed_out,
            out=self._out.read_text(errors="replace") if self._out.exists() else "",
            err=self._err.read_text(errors="replace") if self._err.exists() else "",
        )


def die_with(parent: int) -> None:
    """End this process when its parent ends, however that ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(UNCAUGHT)
