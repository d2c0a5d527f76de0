"""Settings of every command: defaults, then a YAML file, then what is typed; unknown keys are refused with the nearest valid ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from mtsae_lens.errors import ConfigError, nearest


class Settings(BaseModel):
    """Base of the settings of a command."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest(cls, values: Any) -> Any:
        """Written in Python, a misspelt setting is told as on the command line (pydantic makes its own error of it)."""
        if isinstance(values, Mapping):
            cls._check_names(values)
        return values

    @classmethod
    def _check_names(cls, values: Iterable[str]) -> None:
        for key in values:
            if key not in cls.model_fields:
                raise ConfigError(f"unknown setting {key!r}.{nearest(key, cls.model_fields)}")

    @classmethod
    def build(cls, config: Path | None, typed: Mapping[str, Any]) -> Self:
        """Merge a YAML file with what was typed (None means not typed).

        Raises:
            ConfigError: unreadable file, unknown key, or a value of the wrong kind.
        """
        values = _read_yaml(config) if config else {}
        for key, value in typed.items():
            if isinstance(value, dict) and isinstance(values.get(key), dict):
                values[key] = values[key] | value
            elif value is not None:
                values[key] = value
        cls._check_names(values)
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            if first["type"] == "missing":
                raise ConfigError(f"--{place.replace('_', '-')} is needed") from error
            raise ConfigError(f"setting {place}: {first['msg']}; got {first['input']!r}") from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path}: needed a mapping of settings to values")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


T = TypeVar("T")


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """`["k=16", "dilations=[1,4]"]` as a dictionary; values are YAML."""
    parsed = {}
    for assignment in assignments:
        name, separator, value = assignment.partition("=")
        if not separator:
            raise ConfigError(f"--set {assignment}: needed NAME=VALUE, such as --set k=16")
        try:
            parsed[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {assignment}: the value is not YAML ({' '.join(str(error).split())})") from error
    return parsed
