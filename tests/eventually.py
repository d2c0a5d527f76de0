"""Wait until a page shows the effect of an action."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from playwright.sync_api import Page


def eventually(page: Page, read: Callable[[], Any], wanted: Any, seconds: float = 30) -> None:
    """`read() == wanted`, read again until it holds: a click's effect is drawn later, on a busy machine much later."""
    end = time.monotonic() + seconds
    while (found := read()) != wanted and time.monotonic() < end:
        page.wait_for_timeout(20)
    assert found == wanted
