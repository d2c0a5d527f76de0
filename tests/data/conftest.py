"""Provide shared fixtures of the tests of texts."""

from __future__ import annotations

import pytest

from mtsae_lens.data import notices


@pytest.fixture(autouse=True)
def nothing_told_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget which warnings were printed, so that each test can see them again."""
    monkeypatch.setattr(notices, "_told", set())
