"""Paths of this machine: the home folder that a person writes as `~`, and short forms for what other people will read.

A report, a card or an export may travel to another machine. An absolute path means nothing there, and it tells the reader names of users
and folders. So every record that is made to be read shows a path relative to the working directory, relative to `~`, or as `.../NAME`.
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

    Raises:
        ConfigError: `~NAME` where the machine has no user of that name.
    """
    return "+".join(_expand_part(part) for part in name.split("+"))


def _expand_part(part: str) -> str:
    prefix, path = ("bridge:", part.removeprefix("bridge:")) if part.startswith("bridge:") else ("", part)
    if not path.startswith("~"):
        return part
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ConfigError(
            f"expected a path, got {path!r}, and there is no user of that name; for a file of that name, write ./{path}"
        )
    return prefix + expanded


def check_path(name: str) -> None:
    """Raise `ConfigError` for a name that no file system takes."""
    if "\0" in name:
        raise ConfigError(f"expected a name, got one with a zero byte: {name[:40]!r}")
    longest = max((len(os.fsencode(part)) for part in re.split(r"[/+]", name)), default=0)
    if longest > _MAX_COMPONENT or len(name) > 4096:
        raise ConfigError(
            f"expected a name, got {len(name):,} characters ({name[:40]!r}...); no file or folder has a name so long"
        )


def shorten(text: str, *, anywhere: bool = False) -> str:
    """Shorten every absolute path in a text: relative to the working directory, to `~`, or `.../NAME`.

    Args:
        text: a path, or a sentence or source with paths in it.
        anywhere: give the same result in every working directory, so never a path relative to it.
    """
    if os.path.isabs(text) and "\n" not in text and is_here(text):  # its name may hold spaces
        return _shorten_path(text, anywhere)
    return _ABSOLUTE.sub(lambda found: _shorten_path(found.group(), anywhere), text)


def shorten_name(text: str) -> str:
    """Shorten a text that is an absolute path as a whole, and leave every other text alone."""
    parts = [_match_whole(part) for part in text.split("+")] if len(text) < 4096 else [None]
    if not any(parts):
        return text
    shown = [
        part if match is None else match["prefix"] + _shorten_path(match["path"])
        for part, match in zip(text.split("+"), parts, strict=True)
    ]
    return "+".join(shown)


def shorten_settings(value: Any, *, anywhere: bool = False) -> Any:
    """Shorten every absolute path in the strings of settings, however deep they are nested; `anywhere` as for `shorten`."""
    if isinstance(value, str):
        return shorten(value, anywhere=anywhere)
    if isinstance(value, Mapping):
        return {key: shorten_settings(inner, anywhere=anywhere) for key, inner in value.items()}
    return [shorten_settings(inner, anywhere=anywhere) for inner in value] if isinstance(value, list | tuple) else value


def shorten_names(value: Any) -> Any:
    """Shorten every key and string of a record that is an absolute path as a whole; keys that become equal get a number."""
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
    """Match a path with an optional prefix such as `bridge:`; one with spaces only where its folder is here, or it may be prose."""
    match = _WHOLE.fullmatch(text)
    is_path = match is not None and (not re.search(r"\s", text) or Path(match["path"]).parent.is_dir())
    return match if is_path else None


def last_part(path: str) -> str:
    """Return the last part of an absolute path of any system, and any other name as it is."""
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
    """Return whether there is a file or folder of this name."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long, or with a zero byte
        return False


def _working_directory() -> Path | None:
    try:
        return Path.cwd()
    except OSError:  # it was deleted
        return None
