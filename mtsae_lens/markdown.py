"""Escape text from users, such as file names, for Markdown, so that it is never read as HTML, a link or a new line."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SPECIAL = re.compile(r"[\\`*\[\]|~$]|!(?=\[)|(?<!\w)_|_(?!\w)")


def escape_markdown(text: str) -> str:
    """Escape a text for a line or a table cell.

    Args:
        text: the text.
    """
    plain = escape_controls(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(lambda found: "\\" + found.group(), plain)


def escape_controls(text: str) -> str:
    r"""Replace control characters and line breaks by their escapes, such as `\x1b`.

    Args:
        text: the text.
    """
    return _CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def code_span(text: str) -> str:
    """Put a text into backticks, with more backticks than occur in it.

    Args:
        text: the text.
    """
    plain = escape_controls(text)
    fence = "`" * (max((len(run) for run in re.findall("`+", plain)), default=0) + 1)
    pad = " " if plain.startswith("`") or plain.endswith("`") else ""
    return f"{fence}{pad}{plain}{pad}{fence}"
