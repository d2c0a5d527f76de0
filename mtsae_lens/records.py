"""Define typed records: intervals, records that can be written to JSON and read back, and the provenance of a result."""

from __future__ import annotations

import math
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, PlainSerializer, TypeAdapter, ValidationError

from mtsae_lens.errors import DataError
from mtsae_lens.files import write_json
from mtsae_lens.machine_paths import shorten, shorten_names, shorten_settings

METRICS_FILE = "metrics.json"
_PACKAGES = ("mtsae-lens", "torch", "sae-lens", "transformer-lens", "transformers")


MaybeNaN = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    PlainSerializer(lambda value: value if math.isfinite(value) else None),
]
"""A number that may be NaN, which JSON does not have: it is written as null and read back as NaN."""


class Record:
    """Base of the frozen dataclasses that measurements pass to reports and to `metrics.json`.

    The JSON has the names of the fields as keys (or their pydantic aliases). A field with a default is left out if it has that value:
    give a field a default if its key may be absent, and none if null should be written. `from_json(record.to_json()) == record`.
    """

    def to_json(self) -> dict[str, Any]:
        """Return the record as strict JSON."""
        content: dict[str, Any] = _adapter(type(self)).dump_python(  # type: ignore[arg-type]  # a class is hashable
            self, mode="json", by_alias=True, exclude_defaults=True
        )
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Read a record from its JSON; keys of other names are ignored.

        Args:
            content: what `to_json` returned.

        Raises:
            DataError: a key is missing, or a value has another type.
        """
        try:
            return _adapter(cls).validate_python(content)  # type: ignore[arg-type,no-any-return]  # a class is hashable
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise DataError(
                f"expected the JSON of {cls.__name__}, got at {place or 'its top'}: {first['msg']}; delete the file that it was read from "
                "and run the command again"
            ) from error


@cache
def _adapter(record: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(record)


def fields_of(record: Record) -> dict[str, Any]:
    """Return the fields of a record by name, as arguments for a record of a derived class.

    Args:
        record: the record.
    """
    return {field.name: getattr(record, field.name) for field in fields(record)}  # type: ignore[arg-type]  # records are dataclasses


@dataclass(frozen=True)
class Interval(Record):
    """A mean with the ends of its interval, which is a 95% interval unless the field's documentation says otherwise.

    >>> f"{Interval(1.145, 0.994, 1.296)}"
    '+1.145 [+0.994, +1.296]'
    >>> f"{Interval(0.5, 0.25, 0.75):.0%}"
    '50% [25%, 75%]'
    """

    mean: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        """Format all three numbers in the same way; without a format they have a sign and three decimals.

        Args:
            spec: a format specification for floats.
        """
        mean, ends = f"{self.mean:{spec or '+.3f'}}", f"[{self.low:{spec or '+.3f'}}, {self.high:{spec or '+.3f'}}]"
        return f"{mean} {ends}"

    @property
    def ends(self) -> str:
        """Return the two ends in brackets, with a sign and three decimals."""
        return f"[{self.low:+.3f}, {self.high:+.3f}]"


class Stopwatch:
    """Measures the seconds since it was created."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Return the elapsed seconds, rounded to a tenth."""
        return round(time.monotonic() - self._start, 1)


def provenance(seed: int, seconds: float, settings: dict[str, Any]) -> dict[str, Any]:
    """Return command, seed, settings, versions, machine and date of a result, without absolute paths of the machine.

    Args:
        seed: seed of the run.
        seconds: duration of the run.
        settings: settings of the run, as JSON.
    """
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *map(shorten, sys.argv[1:])]),
        "seed": seed,
        "settings": shorten_settings(settings),
        "versions": {package: version(package) for package in _PACKAGES} | {"python": platform.python_version()},
        "machine": f"{platform.system()} {platform.machine()}",
        "date": time.strftime("%Y-%m-%d"),
        "seconds": seconds,
    }


def write_metrics(out: Path, metrics: dict[str, Any]) -> Path:
    """Write `metrics.json` into a folder, whole or not at all; absolute paths in it are shortened.

    Args:
        out: the folder.
        metrics: the content.

    Returns:
        Path of the file.
    """
    path = out / METRICS_FILE
    write_json(path, shorten_names(metrics))
    return path
