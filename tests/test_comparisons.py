"""The law of comparisons: no dataclass compares tensors by a generated `==`, which raises as soon as a tensor has two values."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import mtsae_lens


def package_dataclasses() -> Iterator[type[Any]]:
    for _, name, _ in pkgutil.walk_packages(mtsae_lens.__path__, "mtsae_lens."):
        if not name.endswith("__main__"):
            module = importlib.import_module(name)
            yield from (
                cls for cls in vars(module).values() if inspect.isclass(cls) and is_dataclass(cls) and cls.__module__ == name
            )


def compares_tensors(cls: type[Any]) -> bool:
    """Whether `==` of a class was generated and compares a field that may hold a tensor."""
    equals = vars(cls).get("__eq__")
    if equals is None or equals.__code__.co_filename != "<string>":
        return False
    return any("Tensor" in str(field.type) and field.compare for field in fields(cls))


def test_no_generated_comparison_meets_a_tensor() -> None:
    classes = list(package_dataclasses())
    assert len(classes) > 150
    assert [f"{cls.__module__}.{cls.__qualname__}" for cls in classes if compares_tensors(cls)] == []


def test_the_law_catches_a_class_that_raises() -> None:
    @dataclass(frozen=True)
    class Raises:
        h: Tensor

    @dataclass(frozen=True, eq=False)
    class Fine:
        h: Tensor

    assert compares_tensors(Raises)
    with pytest.raises(RuntimeError, match="ambiguous"):
        _ = Raises(torch.zeros(2)) == Raises(torch.zeros(2))
    assert not compares_tensors(Fine)
    assert Fine(torch.zeros(2)) != Fine(torch.zeros(2))
