"""Let a process keep the memory that it frees, for as long as it will need as much again.

A training step makes gradients and other tensors of some megabytes and frees them. glibc gives such memory back to the system, which hands it
out again page by page in the next step: in a small SAE that is a sixth of the time of a step.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_LARGEST_IN_HEAP = 2**25  # the most that glibc takes for M_MMAP_THRESHOLD; larger tensors always come fresh from the system
_KEPT, _KEPT_AFTERWARDS = 2**30, 2 * _LARGEST_IN_HEAP


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Keep up to 1 GB of freed memory for a `with` block, and give it back at its end. Without glibc nothing is changed."""
    mallopt, malloc_trim = _find("mallopt"), _find("malloc_trim")
    if mallopt is None or malloc_trim is None:
        yield
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST_IN_HEAP)
    mallopt(_TRIM_THRESHOLD, _KEPT)
    try:
        yield
    finally:
        mallopt(_TRIM_THRESHOLD, _KEPT_AFTERWARDS)  # where glibc arrives by itself once it has freed large tensors
        malloc_trim(0)


def _find(name: str) -> Callable[..., Any] | None:
    """Return a function of the C library; None if it has none of this name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
