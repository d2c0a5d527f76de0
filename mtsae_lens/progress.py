"""Progress bars of everything that may take more than a few seconds: what is done, how much of it, and how long the rest takes.

There are two ways to show one. `track` goes around a loop. `phase` goes around code that loops deep inside, and the inner loops move its bar
with `advance`; inside a phase `track` shows no bar of its own, so that one phase has one bar. A bar inside another goes when it is done. A bar
appears after a second: what is done by then needs none. `TQDM_DISABLE=1` in the environment silences all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from threading import Event, Thread
from typing import ParamSpec, TypeVar

from tqdm.auto import tqdm

P = ParamSpec("P")
T = TypeVar("T")
_DELAY_SECONDS = 1.0
_REFRESH_SECONDS = 10.0  # a step may take so long that nothing would move
_open_phase: ContextVar[tqdm | None] = ContextVar("open_phase", default=None)


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
    with _shown(description, unit, total) as bar:
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
    with _shown(description, unit, total) as bar:
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


def announced(action: str, unit: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function that cannot tell how far it is: its bar says for how long it has been at its first argument.

    Args:
        action: what it does, such as `loading`.
        unit: what its first argument is, such as `model`.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def announced_function(*arguments: P.args, **options: P.kwargs) -> T:
            subject = arguments[0] if arguments else next(iter(options.values()))
            with phase(f"{action} {subject}", unit, 1):
                result = function(*arguments, **options)
                advance()
            return result

        return announced_function

    return decorate


@contextmanager
def _shown(description: str, unit: str, total: int | None) -> Iterator[tqdm]:
    """A bar that appears after a second, whether a step is done by then or not."""
    with tqdm(total=total, desc=description, unit=unit, delay=_DELAY_SECONDS, leave=None) as bar:
        if bar.disable:
            yield bar
            return
        done = Event()
        ticker = Thread(target=_tick, args=(bar, done), daemon=True)
        ticker.start()
        try:
            yield bar
        finally:
            done.set()
            ticker.join()


def _tick(bar: tqdm, done: Event) -> None:
    wait = _DELAY_SECONDS
    while not done.wait(wait):
        bar.delay = 0  # else the bar would not know, when it is closed, that it was ever shown
        bar.refresh()
        wait = _REFRESH_SECONDS
