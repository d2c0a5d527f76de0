"""List values that no user would give on purpose."""

from __future__ import annotations

import random
from typing import Any

_SCALARS: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    7,
    64,
    128,
    10**9,
    2**31,
    2**63,
    -(2**63),
    10**30,
    0.0,
    0.5,
    -0.5,
    1.5,
    1e-30,
    1e30,
    1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
    "",
    " ",
    "0",
    "1",
    "-1",
    "nan",
    "inf",
    "null",
    "true",
    "auto",
    "none",
    "cpu",
    "cuda",
    "meta",
    "embedded",
    "float16",
    "relu",
    "topk",
    "a/b",
    "../..",
    "/",
    "/dev/null",
    "~",
    "~nobody",
    "hub:",
    "hub:a/b:c",
    "blocks.0.hook_resid_post",
    "blocks.99.hook_resid_post",
    "\x00",
    "\x1b[31mred",
    "\n",
    "a\nb",
    "é\u202e\ud7ff",
    "<img src=x>",
    "x" * 300,
    "x" * 5000,
    "9" * 5000,
    "{}",
    "%s",
    "${HOME}",
)


def value(rng: random.Random, depth: int = 0) -> Any:
    """A scalar, or a list or mapping of such values."""
    draw = rng.random()
    if depth < 3 and draw < 0.12:
        return [value(rng, depth + 1) for _ in range(rng.choice((0, 1, 2, 3, 8)))]
    if depth < 3 and draw < 0.2:
        return {str(value(rng, 3)): value(rng, depth + 1) for _ in range(rng.choice((0, 1, 2)))}
    if draw < 0.35:
        return rng.choice((rng.randint(-5, 300), rng.uniform(-3, 3), rng.randint(0, 10)))
    return rng.choice(_SCALARS)


_YAML = (
    "2026-13-45",
    "2026-01-01",
    "!!int abc",
    "!!float x",
    "!!bool maybe",
    "!!timestamp x",
    "!!binary x",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!!pairs [a: 1]",
    "!!python/object/apply:os.system [true]",
    "!unknown x",
    "&a [*a]",
    "&a {b: *a}",
    "*nothing",
    "{a: 1, a: 2}",
    "{[1, 2]: 3}",
    "{{a: 1}: 2}",
    "[",
    "]",
    "{",
    "'",
    '"',
    ": :",
    "? a",
    "- a\n- b",
    "a: b: c",
    "%TAG",
    "\t",
    "@",
    "`",
    "|",
    ">",
    "0x1F",
    "0o17",
    "017",
    "1_000",
    "1e-3",
    "1e3",
    "1.e+3",
    ".inf",
    "-.inf",
    ".nan",
    "190:20:30",
    "190:20:30.15",
    "0b101",
    "=",
    "<<",
    "{<<: 1}",
    "{<<: {a: 1}}",
    "yes",
    "off",
    "~",
    "---",
    "--- a\n--- b",
    "...",
    "\ufeffa",
    "\x00",
    "\x85",
    "9" * 5000,
    "-" + "9" * 5000,
    "1" * 400 + "." + "1" * 400,
    "[" * 3000,
    "{a: " * 3000,
    "[" * 500 + "]" * 500,
    "&a [x,x]\n",
)


def yaml_text(rng: random.Random) -> str:
    """The text of a YAML value."""
    draw = rng.random()
    if draw < 0.6:
        return rng.choice(_YAML)
    if draw < 0.8:
        return str(value(rng))
    return "".join(rng.choice("[]{}:,&*!|>'\"%@`#-? \n\ta1.e_+\\~") for _ in range(rng.randint(1, 30)))
