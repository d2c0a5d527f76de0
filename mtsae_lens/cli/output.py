"""Write to the terminal: control characters of prompts and file names are escaped, and a full or closed output gives a one-line error."""

from __future__ import annotations

import errno
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from mtsae_lens.errors import MTSAEWarning

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that move the cursor, change colors or change the direction of text, and lone surrogates, which cannot be encoded; line breaks
and tabs are kept."""

BROKEN_PIPE = 141  # 128 + SIGPIPE, as a shell reports a program that a closed pipe ended


class OutputLost(Exception):
    """Standard output cannot be written any more; the results in files are complete.

    Args:
        error: the error of the write.
    """

    def __init__(self, error: OSError) -> None:
        self.is_pipe = error.errno == errno.EPIPE
        super().__init__(
            f"expected a writable standard output, got {error.strerror}; results in files are complete, so free space or keep the reader open"
        )


def printable(text: str) -> str:
    r"""Replace every control character by its escape, such as `\x1b`.

    Args:
        text: the text.
    """
    return _CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


@contextmanager
def standard_output() -> Iterator[None]:
    """Write to standard output within this context, and flush it at the end.

    Raises:
        OutputLost: standard output is full or closed.
    """
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        raise OutputLost(error) from error


class StandardOutput(Console):
    """A console of rich that raises an error when standard output is lost, where rich would exit."""

    def print(self, *objects: Any, **how: Any) -> None:
        """Print and flush.

        Args:
            *objects: what to print.
            **how: options of `rich.console.Console.print`.

        Raises:
            OutputLost: standard output is full or closed.
        """
        with standard_output():
            super().print(*objects, **how)

    def on_broken_pipe(self) -> None:
        """Raise `OutputLost` instead of exiting."""
        raise OutputLost(BrokenPipeError(errno.EPIPE, "Broken pipe"))


def say(text: str) -> None:
    """Write lines to standard output.

    Args:
        text: the lines.

    Raises:
        OutputLost: standard output is full or closed.
    """
    encoding = sys.stdout.encoding or "utf-8"
    with standard_output():
        print(printable(text).encode(encoding, "backslashreplace").decode(encoding))


def say_aside(text: str) -> None:
    """Write one line to standard error; nothing happens if it is full or closed.

    Args:
        text: the line; line breaks are replaced by spaces.
    """
    with suppress(OSError):
        print(printable(" ".join(text.splitlines())), file=sys.stderr, flush=True)


class _Lines(StringIO):
    """A text buffer with the encoding of standard output, from which rich chooses the characters of lines."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Return the name of the encoding."""
        return sys.stdout.encoding or "utf-8"


def print_tables(*tables: Any) -> None:
    """Print tables of results as text.

    Args:
        *tables: the tables.
    """
    for table in tables:
        drawn = RichTable(show_edge=False, pad_edge=False)
        for name in table.header:
            justify: Any = "left" if name in (table.header[0], "meaning") else "right"
            drawn.add_column(Text(printable(name)), justify=justify)
        for row in table.rows:
            drawn.add_row(*(Text(_cell(cell)) for cell in row))
        with _Lines() as lines:
            is_terminal = sys.stdout.isatty()
            width = Console().width if is_terminal else 220
            Console(file=lines, width=width, force_terminal=False).print(drawn)
            say(lines.getvalue().rstrip("\n"))


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Print every warning of this package as one line within this context, and other warnings as before."""
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, MTSAEWarning):
            say_aside(f"warning: {message}")
        else:
            before(message, category, *where, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def drop_standard_output() -> None:
    """Discard what is still buffered for standard output; otherwise Python would report an error at exit."""
    _send_nowhere(sys.stdout)


def _send_nowhere(stream: Any) -> None:
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _LossyStream:
    """A stream that loses what it cannot write."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.has_lost = stream, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write a text, or lose it."""
        try:
            self.stream.write(text)
        except (OSError, ValueError):
            self.has_lost = True
        return len(text)

    def flush(self) -> None:
        """Flush what was written, or lose it."""
        try:
            self.stream.flush()
        except (OSError, ValueError):
            self.has_lost = True


@contextmanager
def lossy_standard_error() -> Iterator[None]:
    """Let the block go on where standard error is full or closed: progress bars and warnings are lost, and results are not."""
    before = sys.stderr
    stream = _LossyStream(StringIO() if before is None else before)  # None where the descriptor was closed before the start
    sys.stderr = stream  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stderr = before
        if stream.has_lost:  # what is still buffered would make Python exit with another code
            _send_nowhere(before)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else printable(str(value).replace("\n", " "))
