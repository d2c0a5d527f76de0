"""Make records with a few given values and zero, empty or missing values elsewhere, for tests of code that reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from mtsae_lens.records import Record

R = TypeVar("R", bound=Record)


def filled(record: type[R], content: Mapping[str, Any]) -> R:
    """Read a record from JSON in which keys may be missing."""
    return record.from_json(_filled(record, content))


def _filled(kind: Any, content: Any) -> Any:
    """Return the JSON of a type with what is missing filled in."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _filled(arguments[0], content)
    if type(None) in arguments:
        return None if content is None else _filled(next(a for a in arguments if a is not type(None)), content)
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind, include_extras=True)
        given = {} if content is None else content
        return {
            key: _filled(hints[field.name], given.get(key))
            for field in dataclasses.fields(kind)
            if (key := _key(field.name, hints[field.name])) in given or _required(field)
        }
    if origin is dict:
        return {key: _filled(arguments[1], value) for key, value in (content or {}).items()}
    if origin is tuple:
        return [_filled(arguments[0], value) for value in content or ()]
    return content if content is not None else {float: 0.0, int: 0, str: ""}.get(kind, content)


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING


def _key(name: str, hint: Any) -> str:
    aliases = [getattr(extra, "alias", None) for extra in get_args(hint)[1:]] if get_origin(hint) is Annotated else []
    return next((alias for alias in aliases if alias), name)
