"""What a `HookedLM` is given, and how it shows itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mtsae_lens.errors import DataError
from mtsae_lens.splice.hooked_lm import HookedLM


@pytest.mark.parametrize("method", ["masked", "activations", "sae_input", "feature_acts", "generate"])
@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ("the sea", r"lm\.model\.to_tokens\(text\); got a str"),
        ([1, 2, 3], "got a list"),
        (torch.tensor([1, 2, 3]), r"got shape \(3,\)"),
        (torch.ones(1, 5_000, dtype=torch.long), r"5000 positions, but the model reads \d+: cut the text"),
    ],
    ids=["text", "list", "one context", "too long"],
)
def test_what_are_no_tokens_is_refused(lm: HookedLM, method: str, tokens: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        getattr(lm, method)(tokens)


def test_it_prints_as_one_line(lm: HookedLM) -> None:
    assert repr(lm).startswith("HookedLM(")
    assert "mtsae at blocks." in repr(lm)
    assert len(repr(lm)) < 120
