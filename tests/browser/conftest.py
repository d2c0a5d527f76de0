"""Provide one headless Chromium for all tests. Every page must load nothing from the network and log nothing to the console."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

_ARGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()
expect.set_options(timeout=30_000)  # a busy machine is no failure
_NAMES = ("chromium", "chromium-browser", "google-chrome")


def _chromium() -> str:
    found = os.environ.get("CHROMIUM") or next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.fail(
            "no Chromium; `make chromium` installs it on Debian, else set CHROMIUM to its path, or pass --ignore tests/browser"
        )
    return found


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    executable = _chromium()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=_ARGS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """`visit(index, "#/list", width=360, color_scheme="dark")`: a page, watched until the test ends."""
    contexts, trouble = [], []

    def check(request: Any) -> None:
        if not request.url.startswith(("file:", "data:")):
            trouble.append(request.url)

    def visit(index: Path, address: str = "", width: int = 1280, height: int = 800, **options: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda message: trouble.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", check)
        page.goto(index.as_uri() + address)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert trouble == []
