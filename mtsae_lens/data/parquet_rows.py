"""Read rows of a parquet file, and only the columns that are needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from mtsae_lens.data.rows import RowChoice, missing_column
from mtsae_lens.errors import DataError, nearest

_ROWS = 1_024  # rows read at a time, so that memory does not grow with the file


def read_parquet_rows(path: Path, file: BinaryIO, choice: RowChoice) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a file together with their place, which names the row in errors.

    Args:
        path: path of the file, for errors.
        file: the open file.
        choice: the column of the text, and the field by which rows are chosen.

    Yields:
        Pairs of place (`PATH, row 7`) and row.

    Raises:
        DataError: the file is damaged or not parquet, the column does not exist, occurs twice, or does not hold strings.
    """
    try:
        table = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: expected a parquet file, got something else ({' '.join(str(error).split())[:200]}); make the file again"
        ) from error
    schema = table.schema_arrow
    columns = [_check_column(path, schema, choice.column)]
    if choice.field is not None:
        columns = [*dict.fromkeys([*columns, *_field_columns(path, schema, choice.field)])]
    repeated = next((name for name in columns if schema.names.count(name) > 1), None)
    if repeated is not None:
        raise DataError(
            f"{path}: expected one column {repeated!r}, got {schema.names.count(repeated)} of that name; rename all but one"
        )
    first = 0
    try:
        for batch in table.iter_batches(_ROWS, columns=columns):
            values = [batch.column(name).to_pylist() for name in columns]
            for number, row in enumerate(zip(*values, strict=True), first + 1):
                yield f"{path}, row {number}", dict(zip(columns, row, strict=True))
            first += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: expected a whole file, got damage after row {first} ({' '.join(str(error).split())[:200]}); make the file again"
        ) from error


def _field_columns(path: Path, schema: pa.Schema, field: str) -> list[str]:
    """Return the columns in which a field may be: its own column, and `meta`."""
    if _root(schema, field) in schema.names:
        return [name for name in dict.fromkeys([_root(schema, field), "meta"]) if name in schema.names]
    inside = [f"{name}.{of}" for name in dict.fromkeys(schema.names) for of in _fields(schema.types[schema.names.index(name)])]
    if f"meta.{field}" not in inside:
        raise DataError(
            f"{path}: expected a field to choose rows by, got {field!r}, which is not in the file."
            f"{nearest(field, [*dict.fromkeys(schema.names), *inside])}"
        )
    return ["meta"]


def _fields(kind: pa.DataType) -> list[str]:
    """Return the names of the fields of a struct."""
    return [kind.field(place).name for place in range(kind.num_fields)] if pa.types.is_struct(kind) else []


def _root(schema: pa.Schema, name: str) -> str:
    """Return the column that contains a field."""
    return name if name in schema.names else name.split(".", maxsplit=1)[0]


def _check_column(path: Path, schema: pa.Schema, column: str) -> str:
    """Return the top-level column to read for a text column, after a check that it holds strings."""
    root = _root(schema, column)
    if root not in schema.names:
        raise DataError(f"{path}: {missing_column(column, dict.fromkeys(schema.names))}")
    kind = schema.types[schema.names.index(root)]
    for name in [] if root == column else column.split(".")[1:]:
        fields = _fields(kind)
        if name not in fields:
            nested = [f"{root}.{field}" for field in fields]
            raise DataError(f"{path}: {missing_column(column, [*dict.fromkeys(schema.names), *nested])}")
        kind = kind.field(fields.index(name)).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not any(is_kind(kind) for is_kind in _STRINGS):
        raise DataError(
            f"{path}: expected strings in column {column!r}, got {kind}; cast it, or name another column with ?column=NAME"
        )
    return root


_STRINGS = [
    getattr(pa.types, name)  # pyarrow has views since version 16
    for name in ("is_string", "is_large_string", "is_string_view", "is_null")
    if hasattr(pa.types, name)
]
