"""Keep memory that was freed for the next tensor of a command, instead of returning it to the operating system.

A tensor of a few megabytes lives as long as one operation of a forward pass. The allocator of the GNU C library returns such memory when it is
freed and asks for it again right after, and the operating system fills every new page with zeros first. On a small language model that takes as
much time as the computation itself.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping

LARGEST_KEPT = 2**26
"""A block of at least this many bytes is still returned when it is freed, so that freed memory does not pile up between large tensors."""

_MOST_KEPT = 2**30  # free bytes at the end of the heap; only more are returned
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of `mallopt` in malloc.h of the GNU C library
_FALLBACK = 2**25  # the largest threshold for a block before version 2.35 of the library


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Let this process reuse freed memory. Does nothing without the GNU C library, or where the environment tunes its allocator.

    Args:
        environment: the variables of the environment; `MALLOC_...` and `GLIBC_TUNABLES` are left in charge.

    Returns:
        Whether the allocator took the settings.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in environment):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    took = mallopt(_MMAP_THRESHOLD, LARGEST_KEPT) or mallopt(_MMAP_THRESHOLD, _FALLBACK)
    return bool(took and mallopt(_TRIM_THRESHOLD, _MOST_KEPT))
