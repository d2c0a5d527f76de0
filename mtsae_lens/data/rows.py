"""Read the text column of rows, for every storage format, and choose which rows are read."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from mtsae_lens.data.notices import tell_once
from mtsae_lens.data.text_cutting import DOCUMENT_CHARS, LONGEST_DOCUMENT_CHARS, cut_into_documents
from mtsae_lens.errors import DataError, nearest

TEXT = "text"
_MISSING = object()
_N_SHOWN = 8  # columns or values that an error lists


@dataclass(frozen=True)
class RowChoice:
    """The column that holds the text, and the rows that are read.

    Args:
        column: name of the column; `a.b` is the field `b` of a column `a`, unless a column is called `a.b`.
        field: rows are read if this field has the value `value`; None reads all rows. It is named like a column, or is a field of the
            column `meta`.
        value: the value, as written on the command line. Numbers and booleans are compared as such.
    """

    column: str = TEXT
    field: str | None = None
    value: str = ""

    @property
    def is_default(self) -> bool:
        """Return whether all rows are read and their text is in the column `text`."""
        return self.column == TEXT and self.field is None

    def matches(self, found: Any) -> bool:
        """Return whether the value found in a row's field equals the wanted value.

        Args:
            found: the value in the row.
        """
        if isinstance(found, bool):
            return self.value.lower() == str(found).lower()
        if isinstance(found, int | float):
            try:
                return found == (int(self.value) if isinstance(found, int) and "." not in self.value else float(self.value))
            except ValueError:
                return False
        return found is not None and str(found) == self.value


def look_up(row: Mapping[str, Any], name: str) -> Any:
    """Return the value of a column, or of a field inside one (`meta.source`).

    Args:
        row: the row.
        name: name of the column or field.

    Returns:
        The value; `_MISSING` if the row has no such column or field.
    """
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _MISSING
        value = value[part]
    return value


class RowReader:
    """Read the texts of the rows of one source, and count what is skipped.

    Args:
        source: name of the source in messages.
        choice: the column of the text, and the rows that are read.
    """

    def __init__(self, source: str, choice: RowChoice | None = None) -> None:
        self.source, self.choice = source, choice or RowChoice()
        self.n_rows = self.n_matched = self.n_empty = self.n_cut = 0
        self._values: dict[str, None] = {}
        self._columns: dict[str, None] = {}

    def texts(self, rows: Iterable[tuple[str, Any]]) -> Iterator[str]:
        """Yield the texts of rows. A row that is null, or whose text is null or empty, is counted and skipped.

        Args:
            rows: pairs of a place, which errors name, and a row.

        Raises:
            DataError: a row does not have the column, or has something other than text in it.
        """
        for place, row in rows:
            self.n_rows += 1
            if row is None or row == {}:
                self.n_empty += 1
            elif not isinstance(row, Mapping):
                raise DataError(
                    f"{place}: expected an object with a string under {self.choice.column!r}, got a {type(row).__name__}; mend this row"
                )
            elif self._is_wanted(row):
                self.n_matched += 1
                text = self._text(place, row)
                if text is None:
                    self.n_empty += 1
                elif len(text) > LONGEST_DOCUMENT_CHARS:
                    self.n_cut += 1
                    yield from cut_into_documents(text)
                else:
                    yield text

    def _is_wanted(self, row: Mapping[str, Any]) -> bool:
        field = self.choice.field
        if field is None:
            return True
        found = look_up(row, field)
        if found is _MISSING and isinstance(row.get("meta"), Mapping):
            found = look_up(row["meta"], field)
        if found is not _MISSING and self.choice.matches(found):
            return True
        if found is not _MISSING and len(self._values) < _N_SHOWN:
            self._values[str(found)[:40]] = None
        if found is _MISSING and len(self._columns) < _N_SHOWN:
            self._columns |= dict.fromkeys(field_names(row))
        return False

    def _text(self, place: str, row: Mapping[str, Any]) -> str | None:
        column = self.choice.column
        text = look_up(row, column)
        if text is None or (isinstance(text, float) and math.isnan(text)):
            return None
        if not isinstance(text, str):
            kinds = ", ".join(f"{name!r}: {type(value).__name__}" for name, value in islice(row.items(), _N_SHOWN))
            cure = name_column(column, field_names(row)) if text is _MISSING else "make it a string"
            raise DataError(f"{place}: expected an object with a string under {column!r}, got {{{kinds}}}; {cure}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{place}: expected valid Unicode, got half of a surrogate pair at character {error.start}; remove it"
            ) from error
        return text if text.strip() else None

    def tell(self) -> None:
        """Print once what was skipped and what was cut."""
        if sys.is_finalizing():
            return
        if self.n_empty:
            tell_once(
                f"{self.source}: skipped {self.n_empty:,} of {self.n_rows:,} rows, whose text is null or empty",
                about=f"empty rows of {self.source}",
            )
        if self.n_cut:
            tell_once(
                f"{self.source}: {self.n_cut:,} rows have more than {LONGEST_DOCUMENT_CHARS:,} characters; they were cut into documents of "
                f"about {DOCUMENT_CHARS:,}, as a .txt file is, so that parts of them are in every split",
                about=f"long rows of {self.source}",
            )

    def check_matched(self) -> None:
        """Check that at least one row has the wanted value, if rows are chosen by a field.

        Raises:
            DataError: rows were read, and none has the wanted value; the message lists the values or fields that exist.
        """
        field, value = self.choice.field, self.choice.value
        if field is None or self.n_matched or not self.n_rows:
            return
        if self._values:
            shown = ", ".join(map(repr, self._values)) + (", ..." if len(self._values) == _N_SHOWN else "")
            raise DataError(
                f"{self.source}: expected rows with {field}={value!r}, got none in {self.n_rows:,} rows; give one of its values: {shown}"
            )
        raise DataError(
            f"{self.source}: expected rows with a field {field!r}, got none in {self.n_rows:,} rows.{nearest(field, self._columns)}"
        )


def field_names(row: Mapping[str, Any]) -> list[str]:
    """Return the columns of a row, and the fields of nested columns as `column.field`.

    Args:
        row: the row.
    """
    nested = [f"{name}.{field}" for name, value in row.items() if isinstance(value, Mapping) for field in value]
    return [*map(str, row), *nested]


def missing_column(column: str, names: Iterable[str]) -> str:
    """Return an error message that lists the columns that exist, and says how to choose one.

    Args:
        column: the column that does not exist.
        names: the columns that exist.
    """
    names = list(names)
    shown = ", ".join(names[:_N_SHOWN]) + (", ..." if len(names) > _N_SHOWN else "")
    return f"expected a column {column!r}, got {shown or 'no columns'}; {name_column(column, names)}"


def name_column(column: str, names: Iterable[str]) -> str:
    """Return what to type in place of a column that does not exist.

    Args:
        column: the column that does not exist.
        names: the columns that exist.
    """
    names = list(names)
    if column == TEXT and "input_ids" in names:
        return "token ids (input_ids) are not read, so give the text that they were made from"
    return f"name the column of the text with SOURCE?column=NAME.{nearest(column, names)}"
