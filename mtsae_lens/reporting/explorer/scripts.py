"""Write data as JavaScript that a page opened from disk may load: JSON in one function call, safe inside any script element."""

from __future__ import annotations

import json
import math
from typing import Any

_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def round_floats(value: Any, digits: int = 4) -> Any:
    """Round floats at any depth.

    Args:
        value: a value that JSON can hold.
        digits: significant digits.

    Returns:
        The value with rounded floats; NaN and infinity become None (`null`, shown as "-").
    """
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        short = float(f"{value:.{digits}g}")
        return int(short) if short.is_integer() and abs(short) < 2**53 else short
    if isinstance(value, list | tuple):
        return [round_floats(item, digits) for item in value]
    if isinstance(value, dict):
        return {key: round_floats(item, digits) for key, item in value.items()}
    return value


def write_script_json(content: Any) -> str:
    """Write JSON that is also JavaScript and cannot end a script element: `<`, `>`, `&`, U+2028 and U+2029 are escaped.

    Args:
        content: a value that JSON can hold.

    >>> write_script_json("</script>")
    '"\\\\u003c/script\\\\u003e"'
    """
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    return text


def write_shard_script(kind: str, number: int, content: Any) -> str:
    """Write the file `page/data/KIND-NUMBER.js`: one call that passes the content to the page.

    Args:
        kind: kind of the shard.
        number: its number among the shards of this kind.
        content: a value that JSON can hold.
    """
    return f"mtsaeShard({write_script_json(kind)},{number},{write_script_json(content)});\n"
