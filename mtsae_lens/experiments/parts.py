"""Define the parts of an experiment: their trials as JSON, and what each part adds to the page and the terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from mtsae_lens.records import Record
from mtsae_lens.reporting.page import Section, Table
from mtsae_lens.trials import Trial


@dataclass(frozen=True, eq=False)
class PartReport:
    """What one part shows of its record: sections for the page, tables for the terminal."""

    sections: list[Section]
    tables: list[Table]


def as_json(make_record: Callable[[], Record]) -> Trial:
    """Turn a function that makes a record into a trial, which returns its JSON and can be sent to another process.

    Args:
        make_record: the function.
    """
    return partial(_make_json, make_record)


def _make_json(make_record: Callable[[], Record]) -> dict[str, Any]:
    return make_record().to_json()
