"""Parse the string that names a source of text.

    SOURCE = PART+PART+...
    PART   = NAME  or  NAME?key=value&key=value  or  NAME@field=value  or  NAME?key=value@field=value

`NAME` is a path, an embedded domain or `owner/name` on the Hugging Face hub. The keys are `column` (the column of the text), and for
the hub `config` and `split`. A file or folder whose own name looks like this syntax is read as that file: the longest name that exists
is used. In a value, `%26`, `%2B` and `%40` stand for `&`, `+` and `@`, as in a URL.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from mtsae_lens.data.rows import TEXT, RowChoice
from mtsae_lens.errors import DataError, nearest

KEYS = ("column", "config", "split")
_SUFFIX = re.compile(r"(?:\?(?P<options>[^@]*))?(?:@(?P<field>[^=@?]+)=(?P<value>.*))?", re.DOTALL)
_MOST_PLUSES = 16  # most `+` in the name of one file, which limits the names that are tried


@dataclass(frozen=True)
class SourcePart:
    """One part of a source: a name, and what of it is read."""

    text: str
    """The part as it was given."""
    name: str
    path: Path | None
    """Path of the file or folder; None if there is no such file or folder on this machine."""
    choice: RowChoice
    config: str | None = None
    split: str | None = None

    @property
    def is_plain(self) -> bool:
        """Return whether the part is a name without options or a filter."""
        return self.text == self.name


def local_path(name: str) -> Path | None:
    """Return the file or folder of this name, with `~` expanded; None if it does not exist.

    Args:
        name: a path, absolute or relative to the working directory.
    """
    try:
        path = Path(name).expanduser()
        return path if name.strip() and path.exists() else None
    except (OSError, RuntimeError, ValueError):  # a name that is too long, holds a zero byte, or names an unknown user's home
        return None


def source_parts(source: str) -> list[str]:
    """Return the parts of a source that are joined by `+`. A file may have a `+` in its name: the longest name that exists is used.

    Args:
        source: the source.
    """
    pieces = source.split("+")
    if len(pieces) == 1 or not all(pieces) or _is_one_text(source):
        return [source]
    parts, start = [], 0
    while start < len(pieces):
        ends = range(min(len(pieces), start + _MOST_PLUSES), start + 1, -1)
        end = next((end for end in ends if _is_one_text("+".join(pieces[start:end]))), start + 1)
        parts.append("+".join(pieces[start:end]))
        start = end
    return parts


def _is_one_text(source: str) -> bool:
    """Return whether a source is one existing file or folder, so that every `+` in it belongs to its name."""
    name = _local_name(source)
    return name is not None and "+" not in source[len(name) :]


def _local_name(part: str) -> str | None:
    """Return the longest prefix of a part that is an existing file or folder and is followed by nothing, by options or by a filter."""
    ends = [len(part), *(match.start() for match in re.finditer(r"[?@]", part))]
    names = (part[:end] for end in sorted(ends, reverse=True)[:_MOST_PLUSES])
    return next((name for name in names if local_path(name) is not None), None)


def split_part(part: str) -> tuple[str, str]:
    """Split one part into its name and the options and filter after it.

    Args:
        part: one of `source_parts`.

    Returns:
        The longest prefix that is an existing file or folder, or else everything before the first `?` or `@`; and the rest.
    """
    name = _local_name(part)
    if name is None:
        name = re.split(r"[?@]", part, maxsplit=1)[0]
    return name, part[len(name) :]


def parse_part(part: str) -> SourcePart:
    """Parse one part of a source.

    Args:
        part: one of `source_parts`.

    Raises:
        DataError: an option does not exist, or an option or filter has no value.
    """
    name, rest = split_part(part)
    path = local_path(name)
    match = _SUFFIX.fullmatch(rest)
    if match is None:
        raise DataError(f"{part}: expected NAME?key=value&key=value@field=value, got {rest!r} after {name!r}; mend the options")
    options = _parse_options(part, match["options"])
    if path is not None and ("config" in options or "split" in options):
        raise DataError(
            f"{part}: expected only ?column=NAME for a local file or folder, got config or split, which only datasets on the hub have; "
            "leave them out"
        )
    choice = RowChoice(options.get("column", TEXT), match["field"], unquote(match["value"] or ""))
    return SourcePart(part, name, path, choice, options.get("config"), options.get("split"))


def _parse_options(part: str, given: str | None) -> dict[str, str]:
    if given is None:
        return {}
    options = {}
    for one in given.split("&"):
        key, _, value = one.partition("=")
        if key not in KEYS:
            raise DataError(f"{part}: expected one of the options {', '.join(KEYS)}, got {key!r}.{nearest(key, KEYS)}")
        if not value or key in options:
            raise DataError(
                f"{part}: expected one value after {key}=, got {value!r}{' twice' if key in options else ''}; give one"
            )
        options[key] = unquote(value)
    return options
