"""Progress bars of everything that may take more than a few seconds: what is done, how much of it, and how long the rest takes.

There are two ways to show one. `track` goes around a loop. `phase` goes around code that loops deep inside, and the inner loops move its bar
with `advance`; inside a phase `track` shows no bar of its own, so that one phase has one bar. A bar inside another goes when it is done. A bar
appears after a second: what is done by then needs none. `TQDM_DISABLE=1` in the environment silences all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")
_DELAY_SECONDS = 1.0
_open_phase: ContextVar[tqdm[Any] | None] = ContextVar("open_phase", default=None)


def track(items: Iterable[T], description: str, unit: str, total: int | None = None) -> Iterator[T]:
    """Yield the items one by one under a bar; inside a phase without one.

    Args:
        items: what is gone through.
        description: what is done, in a few words.
        unit: what an item is, such as `batch`.
        total: number of items, where `len(items)` does not tell it.
    """
    if _open_phase.get() is not None:
        yield from items
        return
    total = len(items) if total is None and isinstance(items, Sized) else total
    with tqdm(total=total, desc=description, unit=unit, delay=_DELAY_SECONDS, leave=None) as bar:
        for item in items:
            yield item
            bar.update()


@contextmanager
def phase(description: str, unit: str, total: int | None = None) -> Iterator[None]:
    """Show one bar for all that is done inside; `advance` moves it. A phase inside another is a part of that one.

    Args:
        description: what is done, in a few words.
        unit: what is counted, such as `batch`.
        total: how many of them there are; None where nobody knows.
    """
    if _open_phase.get() is not None:
        yield
        return
    with tqdm(total=total, desc=description, unit=unit, delay=_DELAY_SECONDS, leave=None) as bar:
        token = _open_phase.set(bar)
        try:
            yield
        finally:
            _open_phase.reset(token)


def advance(n: int = 1) -> None:
    """Move the bar of the open phase; without one nothing happens."""
    bar = _open_phase.get()
    if bar is not None:
        bar.update(n)
