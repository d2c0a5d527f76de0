"""Build the settings of every command from defaults, a YAML file and the command line; unknown keys are refused with the nearest valid
ones.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from pydantic_core import ErrorDetails

from mtsae_lens.errors import ConfigError, MTSAEError, nearest
from mtsae_lens.machine_paths import check_path, expand_home
from mtsae_lens.yaml_values import parse_yaml, read_yaml

_S = TypeVar("_S", bound="Settings")
_MAY_BE_EMPTY = ("prompt",)
_NAMES_OF_PLACES = ("model", "reference", "dataset", "forget", "retain", "near", "neutral")
"""Settings that name a language model or a text, which may be a file or folder."""
_LARGEST = 2**53  # every library used here accepts it, and JSON represents it exactly


class Settings(BaseModel):
    """Base of the settings of a command.

    `~` is the home folder in every path and every name of a model or text.

    Raises:
        ConfigError: a setting does not exist, or a value has the wrong type.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, defer_build=True)

    def __init__(self, **values: Any) -> None:
        self._check_names(values)
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _as_config_error(error.errors(include_url=False)[0]) from error

    @field_validator("*", mode="before")
    @classmethod
    def _check_text(cls, value: Any, info: Any) -> Any:
        """Refuse empty text and numbers that are too large, and replace `~` in names of files and folders."""
        name = str(info.field_name)
        is_place = name in _NAMES_OF_PLACES or Path in (
            cls.model_fields[name].annotation,
            *get_args(cls.model_fields[name].annotation),
        )
        if isinstance(value, list | tuple):
            return [cls._check_one(name, inner, is_place) for inner in value]
        return cls._check_one(name, value, is_place)

    @classmethod
    def _check_one(cls, name: str, value: Any, is_place: bool) -> Any:
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise ConfigError(
                f"setting {name}: expected a number up to {_LARGEST:,}, got one of {_count_digits(value):,} digits; give a smaller one"
            )
        if isinstance(value, str) and not value.strip() and name not in _MAY_BE_EMPTY:
            raise ConfigError(f"setting {name}: expected a value, got an empty text; leave the setting out for its default")
        if not is_place or not isinstance(value, str | Path):
            return value
        check_path(str(value))
        return type(value)(expand_home(str(value)))

    @classmethod
    def _check_names(cls, values: Iterable[str]) -> None:
        for key in values:
            if key not in cls.model_fields:
                raise ConfigError(f"expected a known setting, got {key!r}.{nearest(key, cls.model_fields)}")

    @classmethod
    def build(cls: type[_S], config: Path | str | None, typed: Mapping[str, Any]) -> _S:
        """Merge a YAML file with the values given on the command line, which override the file.

        Args:
            config: path of the file, or None.
            typed: values from the command line, by the name of the setting. A mapping changes single entries of the file's mapping.

        Raises:
            ConfigError: the file cannot be read, a key does not exist, or a value has the wrong type.
        """
        if config is not None and not str(config):
            raise ConfigError("--config: expected a YAML file, got an empty text; give its path")
        values = read_yaml(Path(expand_home(str(config)))) if config else {}
        for key, value in typed.items():
            merges = isinstance(value, dict) and isinstance(values.get(key), dict)
            values[key] = values[key] | value if merges else value
        return cls(**values)


def _count_digits(number: int) -> int:
    """Count the decimal digits of any number; Python prints at most 4,300 of them."""
    return int(number.bit_length() * math.log10(2)) + 1


def _as_config_error(detail: ErrorDetails) -> MTSAEError:
    """Turn an error of pydantic into an error of this package."""
    own = detail.get("ctx", {}).get("error")
    if isinstance(own, MTSAEError):
        return own
    place = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "missing":
        return ConfigError(f"expected --{place.replace('_', '-')}, got none; give it")
    return ConfigError(f"setting {place}: {describe_problem(detail)}")


def describe_problem(detail: ErrorDetails) -> str:
    """Describe what pydantic expected and what it got, such as `expected a whole number, got 'abc'`.

    Args:
        detail: the error of pydantic.
    """
    expected = re.sub(r"^Input should be ", "expected ", detail["msg"])
    expected = re.sub(r"expected a valid integer.*", "expected a whole number", expected)
    expected = re.sub(r"expected a valid number.*", "expected a number", expected)
    expected = re.sub(r"expected greater than or equal to", "expected a number of at least", expected)
    expected = re.sub(r"expected (greater|less) than", r"expected a number \1 than", expected)
    expected = re.sub(r"expected a valid boolean.*", "expected true or false", expected)
    is_limit = detail["type"].startswith(("greater_than", "less_than"))
    came = str(detail["input"]) if is_limit else repr(detail["input"])  # a number of the command line is text
    return f"{expected}, got {came if len(came) <= 200 else came[:200] + '...'}"


def parse_assignments(assignments: list[str], option: str = "--set") -> dict[str, Any]:
    """Parse `["k=16", "dilations=[1,4]"]` into a dictionary. Values are YAML.

    Args:
        assignments: texts of the form `NAME=VALUE`.
        option: name of the option in errors.

    Raises:
        ConfigError: an assignment has no `=`, a name is given twice, or a value is not YAML.
    """
    parsed: dict[str, Any] = {}
    for assignment in assignments:
        name, separator, value = assignment.partition("=")
        name = name.strip()
        shown = assignment if len(assignment) <= 80 else assignment[:80] + "..."
        if not separator or not name:
            raise ConfigError(f"{option}: expected NAME=VALUE, got {shown!r}; give such as {option} k=16")
        if name in parsed:
            raise ConfigError(f"{option}: expected one value for {name}, got two; give it once")
        parsed[name] = parse_yaml(value, f"{option} {shown}:")
    return parsed
