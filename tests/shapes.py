"""Check shapes and dtypes of tensors during the tests by jaxtyping's import hook and beartype; `CHECK_SHAPES=0` turns it off.

Only annotations with a shape are checked. What else a caller may get wrong the package refuses itself, in words, and tests give it on purpose.
A test that gives a wrong shape on purpose is marked `wrong_shapes`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

CHECKED = ("data", "evaluation", "sae", "splice", "unlearning")

_SHAPE = re.compile(r"\b(Float|Int|Bool|Num|Shaped)\[")
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check the parameters and the result of a function against its shape annotations, with names resolved in its module."""
    annotations = {name: hint for name, hint in function.__annotations__.items() if _SHAPE.search(str(hint))}
    if not annotations:
        return function
    function.__annotations__ = annotations
    return _check(function)


def install() -> None:
    """Check every module of these packages that is imported from now on."""
    install_import_hook([f"mtsae_lens.{name}" for name in CHECKED], "shapes.check")
