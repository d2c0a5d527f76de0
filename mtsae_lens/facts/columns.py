"""Declare a column of a table of facts, and derive Parquet schemas from the record classes whose fields are columns."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pyarrow as pa

Format = Literal["count", "dilation", "fixed", "number", "percent", "share", "signed", "signedNumber"]
"""Functions of the page's `format.js` that turn a value into text."""

_SCALARS = {int: pa.int32(), float: pa.float32(), str: pa.string()}


@dataclass(frozen=True)
class Column:
    """What a column means, and how the explorer shows it.

    Args:
        meaning: one or two sentences, shown as a tooltip and in the legend of the page.
        title: name on the page; a column without one is not in the legend.
        detail: further sentences for the documentation only.
        neutral: the value of a feature without the property in question, for the documentation.
        shown_as: how the summary at the top of a feature's page writes the value; None leaves it out of the summary.
        digits: second argument of the format function; None for its default.
        in_list: whether the page's list of features has the value.
        n_bits: width of integers in the Parquet file.
    """

    meaning: str
    title: str | None = None
    detail: str = ""
    neutral: str = ""
    shown_as: Format | None = None
    digits: int | None = None
    in_list: bool = False
    n_bits: Literal[32, 64] = 32


def columns(record: type[Any]) -> dict[str, Column]:
    """Return the columns of a table by name.

    Args:
        record: the table's record class.
    """
    return {name: get_args(hint)[1] for name, hint in get_type_hints(record, include_extras=True).items()}


def parquet_schema(record: type[Any]) -> pa.Schema:
    """Return the Parquet schema of a table.

    Args:
        record: the table's record class.
    """
    hints = get_type_hints(record, include_extras=True)
    return pa.schema({name: _arrow_type(get_args(hint)[0], get_args(hint)[1].n_bits) for name, hint in hints.items()})


def required_columns(record: type[Any]) -> list[str]:
    """Return the columns that every folder of the format has; the others were added later.

    Args:
        record: the table's record class.
    """
    return [field.name for field in fields(record) if field.default is MISSING]


def _arrow_type(hint: Any, n_bits: int) -> pa.DataType:
    if get_origin(hint) is tuple:
        return pa.list_(_arrow_type(get_args(hint)[0], n_bits))
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (one for one in get_args(hint) if one is not NoneType)
        return _arrow_type(hint, n_bits)
    return pa.int64() if hint is int and n_bits == 64 else _SCALARS[hint]
