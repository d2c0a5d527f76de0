"""Data as JavaScript that a page opened from disk may load: JSON inside one call, safe wherever a script may stand."""

from __future__ import annotations

import json
import math
from typing import Any

_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def rounded(value: Any, digits: int = 4) -> Any:
    """Floats to `digits` significant digits, at any depth; what is no finite number becomes None (`null`, shown as "-")."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        short = float(f"{value:.{digits}g}")
        return int(short) if short.is_integer() and abs(short) < 2**53 else short
    if isinstance(value, list | tuple):
        return [rounded(item, digits) for item in value]
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    return value


def script_json(content: Any) -> str:
    """JSON that is also JavaScript and cannot end a script element: `<`, `>`, `&`, U+2028 and U+2029 are escaped.

    >>> script_json("</script>")
    '"\\\\u003c/script\\\\u003e"'
    """
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    return text


def shard_script(kind: str, number: int, content: Any) -> str:
    """The file `page/data/KIND-NUMBER.js`: one call that hands the content to the page."""
    return f"mtsaeShard({script_json(kind)},{number},{script_json(content)});\n"
