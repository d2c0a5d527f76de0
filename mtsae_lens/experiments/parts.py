"""A part of a long page: what it computed, and how it says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mtsae_lens.reporting.page import Section, Table


@dataclass(frozen=True)
class Part:
    """What one part found: numbers for `metrics.json` under `name`, sections for the page, tables for the terminal."""

    name: str
    metrics: dict[str, Any]
    sections: list[Section]
    tables: list[Table]
