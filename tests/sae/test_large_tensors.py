"""Tensors in large pages are like others, and an encoder that computes in them gives what it gives elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mtsae_lens.sae.large_tensors import make_empty, make_zeros
from mtsae_lens.sae.sparse import apply_encoder

LARGE = (1024, 1032)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("shape", [(3, 4), LARGE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.bool])
def test_large_and_small_tensors_have_the_dtype_asked_for(shape: tuple[int, int], dtype: torch.dtype) -> None:
    zeros, empty = make_zeros(shape, torch.ones(1, dtype=dtype)), make_empty(shape, torch.ones(1, dtype=dtype))
    assert zeros.shape == empty.shape == shape
    assert zeros.dtype == empty.dtype == dtype
    assert not zeros.any()


def test_numpy_gives_the_memory_of_large_tensors_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    empty = np.empty

    def counted(shape: tuple[int, ...], dtype: type) -> object:
        asked.append(shape)
        return empty(shape, dtype=dtype)

    monkeypatch.setattr(np, "empty", counted)
    for shape in ((3, 4), LARGE):
        make_empty(shape, torch.ones(1))
    assert asked == [LARGE]


@pytest.mark.parametrize("n_rows", [2, 1100])
def test_an_encoder_gives_the_same_with_and_without_a_gradient(n_rows: int) -> None:
    encoder_in, W_enc, b_enc = randn(2, n_rows, 16), randn(16, 512), randn(512)
    with torch.no_grad():
        alone = apply_encoder(encoder_in, W_enc.requires_grad_(), b_enc)
    differentiated = apply_encoder(encoder_in, W_enc, b_enc)
    assert not alone.requires_grad
    assert differentiated.requires_grad
    assert_close(alone, differentiated.detach(), rtol=1e-5, atol=1e-5)
    assert_close(alone, encoder_in @ W_enc.detach() + b_enc, rtol=1e-5, atol=1e-5)


def test_an_encoder_follows_autocast() -> None:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert apply_encoder(randn(2, 16), randn(16, 512), randn(512)).dtype == torch.bfloat16
