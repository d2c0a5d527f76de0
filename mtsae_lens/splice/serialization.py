"""Serialize edits and gates: a class that declares its fields needs no further code to be saved, loaded and compared.

The format of an object in a file is derived from the annotations of its dataclass. Types are checked strictly.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Callable
from dataclasses import fields
from functools import cache, reduce
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from jaxtyping import AbstractArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from torch import Tensor

from mtsae_lens.errors import ConfigError, DataError

_LARGEST = 1e10  # beyond it, sums of squares in float32 overflow and logits are NaN
_N_HASHED = 8

Number = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST, allow_inf_nan=False)]
Integer = Annotated[int, Field(gt=-(2**31), lt=2**31)]


class Serializable:
    """Base of `Edit` and `Gate`: a frozen dataclass with a `kind`, the name of its class in a file.

    Two objects are equal if they have the same class and equal values in all fields. Tensors are compared value by value, across
    devices. Equal objects have equal hashes.
    """

    kind: ClassVar[str] = ""
    """Name in a file; empty for a class that is not registered."""

    is_built_in: ClassVar[bool] = False
    """Whether importing `mtsae_lens` registers the class."""

    stored_elsewhere: ClassVar[frozenset[str]] = frozenset()
    """Fields that `to_json` leaves out, because another part of the file holds them."""

    newer: ClassVar[frozenset[str]] = frozenset()
    """Fields that older files lack. In a file, one that has its default is left out, so that earlier versions can read the file."""

    def __init_subclass__(cls) -> None:
        """Keep the comparison of this class, because the one that `dataclass` generates cannot compare tensors."""
        super().__init_subclass__()
        cls.kind = ""  # a subclass is not registered under the name of its parent
        for name in ("__eq__", "__hash__"):
            if name not in cls.__dict__:
                setattr(cls, name, getattr(cls, name))

    def __eq__(self, other: object) -> bool:
        """Compare the classes and the values of all fields."""
        if type(self) is not type(other):
            return NotImplemented
        names = [field.name for field in fields(self) if field.compare]  # type: ignore[arg-type]
        return all(_are_equal(getattr(self, name), getattr(other, name)) for name in names)

    def __hash__(self) -> int:
        """Hash the class and the values of all fields; for a tensor, its shape and first values."""
        return hash((type(self), *(_hashable(getattr(self, f.name)) for f in fields(self) if f.compare)))  # type: ignore[arg-type]

    def to_json(self) -> dict[str, Any]:
        """Return the kind and the fields, in the types of JSON.

        Raises:
            DataError: the class is not registered, or a field has a type that cannot be saved.
        """
        if not self.kind:
            raise DataError(
                f"expected a registered {_family(type(self))} to save, got one of class {type(self).__name__}; decorate the class with "
                f'@register_{_family(type(self))}("a_name")'
            )
        _schema(type(self))  # type: ignore[arg-type]  # classes are hashable
        own = {} if self.is_built_in else {"class": f"{type(self).__module__}.{type(self).__qualname__}"}
        defaults = _defaults(type(self))
        names = [name for name in _saved_fields(type(self)) if name not in defaults or getattr(self, name) != defaults[name]]
        return {"kind": self.kind} | own | {name: _to_plain(getattr(self, name)) for name in names}

    @classmethod
    def from_json(cls, content: dict[str, Any], **others: Any) -> Self:
        """Build an object from what `to_json` returned.

        Args:
            content: the fields, without the kind.
            others: values of fields that are stored elsewhere, such as the gate of an edit.

        Returns:
            An object of this class.

        Raises:
            ConfigError: a field is missing, unknown, of another type, or has a value that the class does not accept.
        """
        try:
            record = _schema(cls).model_validate(content)  # type: ignore[arg-type]
        except ValidationError as error:
            raise ConfigError(describe_first(error)) from error
        hints = _annotations(cls)
        values = {name: _from_plain(name, hints[name], getattr(record, f"{name}_")) for name in _saved_fields(cls)}
        return cls(**values, **others)

    def check_fits(self, d_sae: int, d_in: int) -> None:
        """Check that the object fits an SAE of the given sizes. By default, a field `features` is checked.

        Args:
            d_sae: number of features of the SAE.
            d_in: width of its input.

        Raises:
            ConfigError: the object does not fit.
        """
        features = torch.as_tensor(getattr(self, "features", ()))
        if features.numel() and not (int(features.min()) >= 0 and int(features.max()) < d_sae):
            wrong = int(features.min()) if int(features.min()) < 0 else int(features.max())
            raise ConfigError(f"features: expected indices from 0 to {d_sae - 1}, got {wrong}; give features of this SAE")


Kind = TypeVar("Kind", bound=Serializable)


def register(registry: dict[str, type[Kind]], base: type[Kind], name: str) -> Callable[[type[Kind]], type[Kind]]:
    """Return a decorator that makes a class known under a name.

    Args:
        registry: the known classes by name; the decorated class is added.
        base: what the class must inherit from.
        name: the `kind` in a file.

    Raises:
        ConfigError: the class does not inherit from `base`, or another class has this name.
    """

    def decorate(cls: type[Kind]) -> type[Kind]:
        if not (isinstance(cls, type) and issubclass(cls, base)):
            raise ConfigError(
                f"expected a class that inherits from {base.__name__}, got {cls!r}; write class MyOwn({base.__name__})"
            )
        known = registry.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ConfigError(
                f"expected a new name for a {base.__name__.lower()}, got {name!r}, which {known.__module__}.{known.__qualname__} has; choose "
                "another name"
            )
        cls.kind = name
        cls.is_built_in = cls.__module__.partition(".")[0] == __name__.partition(".")[0]
        registry[name] = cls
        return cls

    return decorate


def describe_first(error: ValidationError) -> str:
    """Describe the first error that pydantic found, in one line: the place, what was expected, and what it got.

    Args:
        error: the error.
    """
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    came = repr(first["input"])
    expected = first["msg"].replace("Input should be", "expected")
    return f"{place}: {expected}, got {came if len(came) <= 60 else came[:60] + '...'}"


def _family(cls: type[Serializable]) -> str:
    """Return `edit` or `gate`: the lower-case name of the class directly below `Serializable`."""
    return next(parent.__name__.lower() for parent in cls.__mro__ if Serializable in parent.__bases__)


def _saved_fields(cls: type[Any]) -> list[str]:
    return [field.name for field in fields(cls) if field.init and field.name not in cls.stored_elsewhere]


def _defaults(cls: type[Any]) -> dict[str, Any]:
    """Return the defaults of the fields that a file may lack."""
    return {field.name: field.default for field in fields(cls) if field.name in cls.newer}


def _annotations(cls: type[Serializable]) -> dict[str, Any]:
    """Return the annotations of a class's fields as types."""
    try:
        return get_type_hints(cls, include_extras=True)
    except NameError as error:
        raise DataError(
            f"expected annotations that can be resolved, got an unknown name in those of {cls.__name__} ({error}); define the class and "
            "import its types at the top of a module"
        ) from error


@cache
def _schema(cls: type[Serializable]) -> type[BaseModel]:
    """Derive the strict schema of a class from the annotations of its fields."""
    hints, defaults = _annotations(cls), _defaults(cls)
    try:
        # The underscore avoids names that pydantic reserves, such as those that begin with "model_".
        columns: dict[str, Any] = {
            f"{name}_": (_plain_type(hints[name]), Field(defaults.get(name, ...), alias=name, validation_alias=name))
            for name in _saved_fields(cls)
        }
    except TypeError as error:
        raise DataError(
            f"expected fields that can be saved, got {cls.__name__} ({error}); annotate its fields with int, float, bool, str, Literal, "
            'tuple[...] or a jaxtyping array such as Float[Tensor, "n d_in"], or define to_json and from_json'
        ) from error
    config = ConfigDict(strict=True, frozen=True, extra="forbid", protected_namespaces=())
    return create_model(cls.__name__, __config__=config, **columns)


def _plain_type(hint: Any) -> Any:
    """Return the type that a field has in JSON.

    Raises:
        TypeError: the field cannot be saved.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    plain = {float: Number, int: Integer, bool: bool, str: str, types.NoneType: None}
    if hint in plain or origin is Literal:
        return plain.get(hint, hint)
    if origin is Annotated:
        return Annotated[(_plain_type(arguments[0]), *arguments[1:])]
    if (origin is tuple and arguments[1:] == (Ellipsis,)) or (origin is list and arguments):
        return list[_plain_type(arguments[0])]  # type: ignore[misc]
    if origin in (Union, types.UnionType):
        return reduce(operator.or_, map(_plain_type, arguments))
    if _is_array(hint):
        return reduce(lambda inner, _: list[inner], hint.dims, _plain_type(_number_type(hint)))  # type: ignore[valid-type]
    raise TypeError(f"a value of type {hint!r} cannot be saved")


def _is_array(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, AbstractArray)


def _number_type(hint: Any) -> type:
    """Return int, float or bool for a jaxtyping array."""
    if all("int" in name for name in hint.dtypes):
        return int
    return bool if all("bool" in name for name in hint.dtypes) else float


def _to_plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    return [_to_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _from_plain(name: str, hint: Any, value: Any) -> Any:
    """Convert a JSON value to the annotated type."""
    if get_origin(hint) is tuple:
        return tuple(_from_plain(name, get_args(hint)[0], item) for item in value)
    if not _is_array(hint):
        return value
    dtype = {int: torch.long, float: torch.float32, bool: torch.bool}[_number_type(hint)]
    try:
        return torch.tensor(value, dtype=dtype)
    except ValueError as error:
        raise ConfigError(f"{name}: expected rows of one length, got different lengths; mend the file") from error


def _are_equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool((a.detach().cpu() == b.detach().cpu()).all())
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(_are_equal, a, b))
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return False
    return bool(a == b)


def _hashable(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape), tuple(value.detach().flatten()[:_N_HASHED].tolist())
    return tuple(map(_hashable, value)) if isinstance(value, tuple | list) else value
