"""Make the options of a verb from the fields of its settings class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from cyclopts import Parameter, Token
from pydantic.fields import FieldInfo

from mtsae_lens.settings import Settings, parse_assignments

_POSITIONAL = ("sae", "facts", "repo_id")
"""Settings that are positional arguments if they have no default."""
_TEXTS = ("dataset", "forget")
"""Settings that take one text. Several texts are joined with `+`, because a repeated option would replace the first value."""
_CONFIG = inspect.Parameter(
    "config",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[str | None, Parameter(help="YAML file of settings. Options on the command line override it.")],
)


def settings_verb(run: Callable[..., None]) -> Callable[..., None]:
    """Make a verb of the command line from a function that takes settings.

    Args:
        run: the function. Its first parameter is the settings; further keyword-only parameters with a default are additional options.

    Returns:
        A function whose keyword arguments are the options that were given; cyclopts reads its signature.
    """
    first, *own = inspect.signature(run).parameters.values()
    hints = get_type_hints(run, include_extras=True)
    settings: type[Settings] = hints[first.name]

    def verb(config: str | None = None, **given: Any) -> None:
        further = {parameter.name: given.pop(parameter.name) for parameter in own if parameter.name in given}
        run(build_settings(settings, config, given), **further)

    options = [_option(name, field) for name, field in settings.model_fields.items()]
    options += [parameter.replace(annotation=hints[parameter.name]) for parameter in own] + [_CONFIG]
    verb.__name__, verb.__doc__, verb.__annotations__ = run.__name__, run.__doc__, {}
    verb.__signature__ = inspect.Signature(sorted(options, key=lambda option: option.kind))  # type: ignore[attr-defined]
    return verb


def build_settings(settings: type[Settings], config: str | None, given: dict[str, Any]) -> Settings:
    """Build settings from a YAML file and the options on the command line.

    Args:
        settings: class of the settings.
        config: path of the file.
        given: text of each option by the name of its setting, or a list of texts if it takes several.

    Raises:
        ConfigError: the file cannot be read, or the settings do not allow a value.
    """
    fields = settings.model_fields
    values = {
        name: parse_assignments(value, option_name(name, fields[name])) if _is_mapping(fields[name]) else value
        for name, value in given.items()
    }
    return settings.build(config, values)


def option_name(name: str, field: FieldInfo) -> str:
    """Return the name of the option of a setting, such as `--d-sae`.

    Args:
        name: name of the setting.
        field: its field.
    """
    extra = field.json_schema_extra
    return str(extra["option"]) if isinstance(extra, dict) and "option" in extra else f"--{name.replace('_', '-')}"


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    is_positional = name in _POSITIONAL and field.is_required()
    is_flag = field.annotation is bool
    default = None if field.is_required() or _is_mapping(field) else field.get_default(call_default_factory=True)
    if isinstance(default, Path):
        default = str(default)
    about = Parameter(
        name=None if is_positional else option_name(name, field),
        help=" ".join(f"{field.description} {'[required]' if field.is_required() else ''}".split()),
        converter=None if is_flag else _texts_of(field),
        negative=None if is_flag else "",
        accepts_keys=False,
        allow_repeating=name not in _TEXTS or _takes_several(field),
        show_default=_show_default if default not in (None, ()) else False,
        required=False,  # a file may set it; the settings class reports what is missing
    )
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if is_positional else inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=Annotated[_shown_type(field), about])


def _texts_of(field: FieldInfo) -> Callable[[Any, Sequence[Token]], Any]:
    """Return a converter that keeps the text of an option unchanged; the settings class converts it, as it does for a file."""
    several = _takes_several(field)
    allows_null = type(None) in _types_in(field.annotation)

    def convert(_: Any, tokens: Sequence[Token]) -> Any:
        texts = [None if allows_null and token.value == "null" else token.value for token in tokens]
        return texts if several else texts[0]

    return convert


def _takes_several(field: FieldInfo) -> bool:
    return _is_mapping(field) or any(get_origin(kind) is tuple for kind in (field.annotation, *get_args(field.annotation)))


def _is_mapping(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is dict


def _types_in(annotation: Any) -> set[Any]:
    """Return every plain type in an annotation."""
    inner = [arg for arg in get_args(annotation) if arg is not ...] if get_origin(annotation) is not Literal else []
    return {annotation}.union(*map(_types_in, inner))


def _shown_type(field: FieldInfo) -> Any:
    """Return a type that tells cyclopts how many values there are and what the help shows."""
    if _is_mapping(field):
        return list[str] | None
    if _takes_several(field):
        inner = next(kind for kind in (field.annotation, *get_args(field.annotation)) if get_origin(kind) is tuple)
        element: Any = next(kind for kind in get_args(inner) if kind is not ...)
        shown: Any = str if get_origin(element) is dict else element  # a mapping is typed as YAML
        return list[shown] | None
    kind: Any = str if Path in _types_in(field.annotation) else field.annotation
    return kind | None if field.is_required() or field.default is None else kind


def _show_default(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
