"""Show progress bars for work that may take more than a few seconds.

There are two ways to show one. `track` wraps a loop. `phase` wraps code with nested loops, which move the bar with `advance`; inside a
phase, `track` shows no bar, so one phase has one bar. A nested bar disappears when it is done. A bar appears only after a second, so
short work shows none. `TQDM_DISABLE=1` in the environment disables all bars.
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
_REFRESH_SECONDS = 10.0  # refresh also during a step, which may take long
_open_phase: ContextVar[tqdm | None] = ContextVar("open_phase", default=None)


def track(items: Iterable[T], description: str, unit: str, total: int | None = None) -> Iterator[T]:
    """Yield items one by one and show a bar; inside a phase, show none.

    Args:
        items: the items.
        description: what is done, in a few words.
        unit: what an item is, such as `batch`.
        total: number of items, if `len(items)` does not give it.
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
    """Show one bar for everything inside this context, which `advance` moves. A phase inside another phase shows no bar.

    Args:
        description: what is done, in a few words.
        unit: what is counted, such as `batch`.
        total: number of units; None if it is unknown.
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
    """Move the bar of the active phase; without one nothing happens.

    Args:
        n: number of units.
    """
    bar = _open_phase.get()
    if bar is not None:
        bar.update(n)


def announced(action: str, unit: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function that cannot report its progress, such that a bar shows how long it has been running.

    Args:
        action: what the function does, such as `loading`.
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
    """Yield a bar that appears after a second, even if no step is finished by then."""
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
        bar.delay = 0  # otherwise the bar would not be cleared when it is closed
        bar.refresh()
        wait = _REFRESH_SECONDS
