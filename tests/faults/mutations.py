"""Damage a file at random, as disks, editors and failed copies do."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.junk import value


def damage(path: Path, others: list[Path], rng: random.Random) -> str:
    """Damage a file in place, so that its bytes differ, and describe how.

    Args:
        path: the file.
        others: files of the same folder whose content may replace it.
        rng: source of randomness.
    """
    before = path.read_bytes()
    for _ in range(20):
        name = rng.choice([*_BYTES, *(_JSON if path.suffix in (".json", ".jsonl") else ()), "swap", "delete"])
        if name == "delete":
            path.unlink()
            return f"{path.name}: deleted"
        if name == "swap":
            candidates = [other for other in others if other.suffix == path.suffix and other != path] or [path]
            shutil.copyfile(rng.choice(candidates), path) if candidates != [path] else None
        elif name in _BYTES:
            path.write_bytes(_BYTES[name](before, rng))
        else:
            path.write_text(_JSON[name](before.decode(), rng))
        if path.read_bytes() != before:
            return f"{path.name}: {name}"
    path.write_bytes(b"")
    return f"{path.name}: emptied"


def _flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    if changed:
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _flip_in_header(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    if changed:
        changed[rng.randrange(min(256, len(changed)))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _block_of_zeros(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    length = len(content[start : start + 512])
    return content[:start] + bytes(length) + content[start + length :]


_BYTES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "a bit flipped": _flip,
    "a bit flipped near the start": _flip_in_header,
    "a block of zeros": _block_of_zeros,
    "cut": lambda content, rng: content[: rng.randrange(len(content) + 1)],
    "the last bytes missing": lambda content, rng: content[: -rng.randint(1, 16)],
    "emptied": lambda content, rng: b"",
    "bytes appended": lambda content, rng: content + rng.randbytes(rng.randint(1, 64)),
    "random bytes": lambda content, rng: rng.randbytes(len(content) or 16),
}


def _change_a_value(text: str, rng: random.Random) -> str:
    content = _parse(text)
    places = list(_places(content))
    if places:
        owner, key = rng.choice(places)
        owner[key] = value(rng)
    return json.dumps(content)


def _drop_a_key(text: str, rng: random.Random) -> str:
    content = _parse(text)
    places = [(owner, key) for owner, key in _places(content) if isinstance(owner, dict)]
    if places:
        owner, key = rng.choice(places)
        del owner[key]
    return json.dumps(content)


def _drop_a_line(text: str, rng: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    del lines[rng.randrange(len(lines))]
    return "".join(lines)


_JSON: dict[str, Callable[[str, random.Random], str]] = {
    "another value": _change_a_value,
    "a key missing": _drop_a_key,
    "a line missing": _drop_a_line,
    "null": lambda text, rng: "null",
    "[]": lambda text, rng: "[]",
    "{}": lambda text, rng: "{}",
    "a number": lambda text, rng: "17",
    "nested 100,000 deep": lambda text, rng: "[" * 100_000 + "]" * 100_000,
}


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # lines of JSON
        return [json.loads(line) for line in text.splitlines()]


def _places(content: Any) -> list[tuple[Any, Any]]:
    """Every value inside, as what it is in and its key or index."""
    if isinstance(content, dict):
        pairs = list(content.items())
    elif isinstance(content, list):
        pairs = list(enumerate(content[:50]))
    else:
        return []
    return [(content, key) for key, _ in pairs] + [place for _, inner in pairs for place in _places(inner)]
