"""Test half precision: its names, losses that are not rounded to it, and the differences that rounding explains."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mtsae_lens.data.precision import (
    DTYPES,
    disagreement,
    in_float32,
    log_probs_of,
    recorded_dtype,
    rounding_disagreement,
    torch_dtype,
)
from mtsae_lens.errors import ModelError


def test_dtypes_by_name() -> None:
    assert [torch_dtype(name) for name in DTYPES] == [torch.float32, torch.bfloat16, torch.float16]
    for name in ("int8", "float", "torch.bfloat16", "float64"):
        with pytest.raises(ModelError, match=f"out of float32, bfloat16, float16, got '{name}'"):
            torch_dtype(name)


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        (None, None),
        ({}, None),
        ({"center_writing_weights": False}, None),
        ({"dtype": "bfloat16", "fold_ln": False}, "bfloat16"),
        ({"dtype": "torch.float16"}, "float16"),
        ({"dtype": "bf16"}, "bfloat16"),
        ({"dtype": torch.bfloat16}, "bfloat16"),
        ({"torch_dtype": "float16", "dtype": "float32"}, "float16"),
        ({"dtype": "auto"}, "auto"),
    ],
)
def test_what_saelens_records(kwargs: Any, expected: str | None) -> None:
    assert recorded_dtype(kwargs) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_log_probs_are_those_of_the_logits_in_float32(dtype: torch.dtype) -> None:
    logits = (4 * torch.randn(6, 500, generator=torch.Generator().manual_seed(0))).to(dtype)
    got = log_probs_of(logits)
    assert got.dtype == in_float32(logits).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = logits.double() - logits.double().exp().sum(dim=-1, keepdim=True).log()
    assert (got - expected).abs().max() < 1e-5
    rounded = (logits.log_softmax(dim=-1).double() - expected).abs().max()
    assert (rounded > 1e-3) == (dtype in (torch.bfloat16, torch.float16))  # what is kept out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("outliers", [1.0, 60.0])
def test_rounding_is_no_disagreement_and_a_wrong_matrix_is(dtype: torch.dtype, outliers: float) -> None:
    """Eight layers computed in half precision, in two orders, and in float32; then with two dimensions that dwarf the others."""
    generator = torch.Generator().manual_seed(0)
    weights = [(torch.randn(64, 64, generator=generator) / 8).to(dtype) for _ in range(8)]
    x = torch.randn(32, 64, generator=generator)
    x[:, :2] *= outliers
    x = x.to(dtype)

    def logits(x: torch.Tensor, weights: list[torch.Tensor], n_parts: int = 1) -> torch.Tensor:
        for weight in weights:
            scaled = x / x.square().mean(dim=-1, keepdim=True).sqrt()
            parts = zip(scaled.chunk(n_parts, dim=1), weight.chunk(n_parts), strict=True)
            x = x + torch.tanh(sum(part @ rows for part, rows in parts))  # type: ignore[arg-type]
        return x[:, 2:]

    got, rendering, exact = logits(x, weights), logits(x, weights, 4), logits(x.float(), [weight.float() for weight in weights])
    assert not torch.equal(got.float(), exact)
    assert not torch.equal(got, rendering)
    assert rounding_disagreement(got, exact, [rendering]) is None
    assert rounding_disagreement(got + 3, exact, [rendering]) is None  # softmax does not see a shift
    assert disagreement(got, exact) is not None  # it is not equal as it would be in float32
    wrong = logits(x, [*weights[:4], -weights[4], *weights[5:]])
    found = rounding_disagreement(wrong, exact, [rendering])
    assert found is not None
    assert f"of which rounding to {str(dtype)[6:]} explains" in found


def test_no_number_is_a_disagreement() -> None:
    logits = torch.randn(2, 5)
    assert disagreement(logits, logits) is None
    half = logits.bfloat16()
    assert rounding_disagreement(half, half.float(), [half]) is None
    for broken in (logits * torch.nan, logits.masked_fill(torch.arange(10).view(2, 5) == 3, torch.nan)):
        assert "nan" in (disagreement(broken, logits) or "")
        assert "nan" in (disagreement(logits, broken) or "")
        assert "nan" in (rounding_disagreement(broken.bfloat16(), logits, [half]) or "")
    zero = torch.zeros(2, 5, dtype=torch.bfloat16)
    assert rounding_disagreement(zero, zero.float(), [zero]) is None
    assert rounding_disagreement(half, zero.float(), [zero]) is not None
