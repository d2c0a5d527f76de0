"""Expand `~`, and shorten the paths of this machine in output for other people.

A report, a card or an export may be read on another machine. An absolute path means nothing there, and reveals names of users and
folders. Therefore every record that people read shows a path relative to the working directory, relative to `~`, or as `.../NAME`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from mtsae_lens.errors import ConfigError

_MAX_COMPONENT = 255  # bytes of a file name, on every common file system
_NAME = r"[^\s/\\+,;:'\"()<>|]"
_ABSOLUTE = re.compile(rf"(?<![\w.~/\\-])(?:/{_NAME}+(?:/{_NAME}*)+|(?:(?<!\w)[A-Za-z]:)[\\/]{_NAME}+(?:[\\/]{_NAME}*)*)")
_WHOLE = re.compile(r"(?P<prefix>(?:[\w-]+:)?)(?P<path>/[^/\n]+/[^\n]+|[A-Za-z]:[\\/][^\n]+)")


def expand_home(name: str) -> str:
    """Replace `~` at the start of a path, of the folder after `bridge:`, and of every source that is joined by `+`.

    Args:
        name: a path, or the name of a model or text.

    Raises:
        ConfigError: `~NAME` names a user that does not exist on this machine.
    """
    return "+".join(_expand_part(part) for part in name.split("+"))


def _expand_part(part: str) -> str:
    prefix, path = ("bridge:", part.removeprefix("bridge:")) if part.startswith("bridge:") else ("", part)
    if not path.startswith("~"):
        return part
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ConfigError(f"expected a path, got {path!r}, which names an unknown user; for a file of that name, give ./{path}")
    return prefix + expanded


def check_path(name: str) -> None:
    """Check that a name is possible on a file system.

    Args:
        name: the name.

    Raises:
        ConfigError: it contains a zero byte or is too long.
    """
    if "\0" in name:
        raise ConfigError(f"expected a name, got one with a zero byte ({name[:40]!r}); remove it")
    longest = max((len(os.fsencode(part)) for part in re.split(r"[/+]", name)), default=0)
    if longest > _MAX_COMPONENT or len(name) > 4096:
        raise ConfigError(
            f"expected a name of at most {_MAX_COMPONENT} bytes, got {len(name):,} characters ({name[:40]!r}...); shorten it"
        )


def shorten(text: str, *, anywhere: bool = False) -> str:
    """Shorten every absolute path in a text: relative to the working directory, to `~`, or `.../NAME`.

    Args:
        text: a path, or a sentence or source with paths in it.
        anywhere: whether the result must be the same in every working directory, so that no path is relative to it.
    """
    if os.path.isabs(text) and "\n" not in text and is_here(text):  # such a path may contain spaces
        return _shorten_path(text, anywhere)
    return _ABSOLUTE.sub(lambda found: _shorten_path(found.group(), anywhere), text)


def shorten_name(text: str) -> str:
    """Shorten a text that is an absolute path as a whole, and return every other text unchanged.

    Args:
        text: the text.
    """
    parts = [_match_whole(part) for part in text.split("+")] if len(text) < 4096 else [None]
    if not any(parts):
        return text
    shown = [
        part if match is None else match["prefix"] + _shorten_path(match["path"])
        for part, match in zip(text.split("+"), parts, strict=True)
    ]
    return "+".join(shown)


def shorten_settings(value: Any, *, anywhere: bool = False) -> Any:
    """Shorten every absolute path in the strings of nested settings.

    Args:
        value: the settings.
        anywhere: as for `shorten`.
    """
    if isinstance(value, str):
        return shorten(value, anywhere=anywhere)
    if isinstance(value, Mapping):
        return {key: shorten_settings(inner, anywhere=anywhere) for key, inner in value.items()}
    return [shorten_settings(inner, anywhere=anywhere) for inner in value] if isinstance(value, list | tuple) else value


def shorten_names(value: Any) -> Any:
    """Shorten every key and string of a record that is an absolute path as a whole; keys that become equal get a number.

    Args:
        value: the record.
    """
    if isinstance(value, str):
        return shorten_name(value)
    if isinstance(value, list | tuple):
        return [shorten_names(inner) for inner in value]
    if not isinstance(value, Mapping):
        return value
    shown: dict[Any, Any] = {}
    for key, inner in value.items():
        short = name = shorten_name(key) if isinstance(key, str) else key
        number = 2
        while name in shown:
            name, number = f"{short} ({number})", number + 1
        shown[name] = shorten_names(inner)
    return shown


def _match_whole(text: str) -> re.Match[str] | None:
    """Match a path with an optional prefix such as `bridge:`. A text with spaces is a path only if its folder exists, because it may be
    prose.
    """
    match = _WHOLE.fullmatch(text)
    is_path = match is not None and (not re.search(r"\s", text) or Path(match["path"]).parent.is_dir())
    return match if is_path else None


def last_part(path: str) -> str:
    """Return the last component of an absolute path of any system, and any other name unchanged.

    Args:
        path: the path or name.
    """
    windows = PureWindowsPath(path)  # takes both kinds of slash
    return windows.name if windows.is_absolute() or Path(path).is_absolute() else path


def _shorten_path(path: str, anywhere: bool = False) -> str:
    if not path.startswith("/"):
        return f".../{PureWindowsPath(path).name}"
    normal = Path(os.path.normpath(path))
    for start, folder in (("", None if anywhere else _working_directory()), ("~", Path(os.path.expanduser("~")))):
        if folder is not None and folder != Path("/") and normal.is_relative_to(folder):
            return (Path(start) / normal.relative_to(folder)).as_posix()
    return f".../{normal.name}"


def is_here(path: str) -> bool:
    """Return whether a file or folder of this name exists.

    Args:
        path: the name.
    """
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long, or with a zero byte
        return False


def _working_directory() -> Path | None:
    try:
        return Path.cwd()
    except OSError:  # it was deleted
        return None
