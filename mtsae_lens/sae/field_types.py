"""Check the fields of an SAE's configuration against the types that its class declares; SAELens's classes do not check them.

The check is used for settings from the command line, for a `cfg.json` from elsewhere, and for an `MTSAEConfig` made in Python.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from mtsae_lens.errors import ConfigError

_COUNTS = frozenset("d_in d_sae d_out kval_topk n_heads n_attn_layers bottleneck_factor context_size max_iterations".split())
_LARGEST = 2**31 - 1  # largest integer; sizes, steps and positions are all far below
_OWN_CHECK = "normalize_activations"  # SAELens accepts a value that its annotation lacks, and checks the others itself
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


def check_fields(config_class: type, values: Mapping[str, Any]) -> None:
    """Check values for the fields of a configuration's class; unknown names and `metadata` are ignored.

    Args:
        config_class: a dataclass with annotations.
        values: values by field; lists stand for tuples, as in JSON.

    Raises:
        ConfigError: a value has another type, a number is not finite or above 2**31 - 1, or a size is below 1.
    """
    hints = _hints(config_class)
    for name, value in values.items():
        if name not in hints or name == "metadata" or (name == _OWN_CHECK and isinstance(value, str)):
            continue
        try:
            _adapter(config_class, name).validate_json(json.dumps(value, default=_plain))
        except (ValidationError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ConfigError(
                f"expected {name} to be {_describe(hints[name], value)}, got {_shown(value)}; change it"
            ) from error
        for number in value if isinstance(value, list | tuple) else (value,):
            if isinstance(number, int) and abs(number) > _LARGEST:
                raise ConfigError(f"expected {name} to be at most {_LARGEST:,}, got {_shown(number)}; change it")
        if name in _COUNTS and isinstance(value, int | float) and not value > 0:
            raise ConfigError(f"expected {name} to be at least 1, got {value}; change it")


def check_one_of(name: str, value: str, valid: Iterable[str]) -> None:
    """Check that a field has one of some values.

    Args:
        name: the name of the field.
        value: its value.
        valid: the values that it may have.

    Raises:
        ConfigError: it has another one.
    """
    if value not in valid:
        raise ConfigError(f"expected {name} out of {', '.join(map(repr, valid))}, got {value!r}; give one of them")


def as_whole_numbers(config_class: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert floats such as `1e3` to integers if the field takes only integers.

    Args:
        config_class: a dataclass with annotations.
        values: values by field.

    Returns:
        The values, converted where needed.
    """
    hints = _hints(config_class)

    def convert(name: str, value: Any) -> Any:
        kinds = _members(hints.get(name))
        is_whole = isinstance(value, float) and value.is_integer()
        return int(value) if is_whole and int in kinds and float not in kinds else value

    return {name: convert(name, value) for name, value in values.items()}


@cache
def _hints(config_class: type) -> dict[str, Any]:
    return get_type_hints(config_class)


@cache
def _adapter(config_class: type, name: str) -> TypeAdapter:
    return TypeAdapter(_hints(config_class)[name], config=_STRICT)


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _describe(hint: Any, value: Any) -> str:
    """Describe in words which values a type takes."""
    members = _members(hint)
    kinds = [_describe_one(member, value) for member in members if member is not type(None)]
    return " or ".join(dict.fromkeys(kinds)) + (" or null" if len(kinds) < len(members) else "")


def _describe_one(hint: Any, value: Any) -> str:
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(repr, get_args(hint)))}"
    if get_origin(hint) in (tuple, list):
        return "whole numbers in a list" if int in get_args(hint) else "a list"
    is_infinite = isinstance(value, float) and not math.isfinite(value)
    names: dict[Any, str] = {int: "a whole number", float: "a finite number" if is_infinite else "a number"}
    return (names | {bool: "true or false", str: "a text", dict: "a mapping"}).get(hint, "of another kind")


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # more digits than Python prints
        return "a value that cannot be printed"
    return text if len(text) <= 100 else f"{text[:100]}..."


def _plain(value: Any) -> Any:
    """Convert a number of NumPy or torch to a Python number, for JSON."""
    return value.item()
