"""The largest values of rows are those that torch finds, and what is decoded from them is the dense product."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sae_lens.saes.topk_sae import TopK
from torch import Tensor
from torch.testing import assert_close

from mtsae_lens.sae import sparse
from mtsae_lens.sae.entries import Entries
from mtsae_lens.sae.largest import keep_largest, largest_of_rows
from mtsae_lens.sae.sparse import decode_few


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("d_sae", [1, 7, 64, 96, 97, 1024, 1536])
@pytest.mark.parametrize("k", [1, 3, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_largest_of_rows_are_found(d_sae: int, k: int, dtype: torch.dtype) -> None:
    k = min(k, d_sae)
    for values in (randn(5, d_sae, dtype=dtype), randn(2, 3, d_sae, dtype=dtype), torch.zeros(2, d_sae, dtype=dtype)):
        places = largest_of_rows(values, k)
        assert places.shape == (*values.shape[:-1], k)
        assert (places.diff(dim=-1) > 0).all()
        found = values.gather(-1, places).sort(descending=True).values
        assert torch.equal(found, values.topk(k).values)


def test_all_largest_in_one_group_are_found() -> None:
    values = -torch.ones(1, 1024)
    values[0, 5::256] = torch.tensor([4.0, 3.0, 2.0, 1.0])  # places of one group, if groups have four values
    assert set(largest_of_rows(values, 32)[0].tolist()) > {5, 261, 517, 773}


def test_rows_with_ties_leave_the_others_as_they_are() -> None:
    values = randn(6, 1024)
    values[1], values[4, ::2] = 0.0, values[4].amax()
    places = largest_of_rows(values, 32)
    assert all(len(row.unique()) == 32 for row in places)
    assert torch.equal(values.gather(-1, places).sort(descending=True).values, values.topk(32).values)


def test_a_nan_is_the_largest() -> None:
    values = randn(3, 1024)
    values[1, 700] = torch.nan
    assert 700 in largest_of_rows(values, 4)[1]


def test_what_is_kept_and_its_gradient_are_those_of_saelens() -> None:
    values = (randn(4, 6, 128) - 1.5).requires_grad_()  # fewer than k of a row are positive
    weights = randn(4, 6, 128).sin()
    ours, theirs = keep_largest(values, 16), TopK(16)(values)
    assert torch.equal(ours, theirs)
    assert (ours > 0).sum() not in (0, 4 * 6 * 16)
    assert torch.equal(*(torch.autograd.grad((kept * weights).sum(), values)[0] for kept in (ours, theirs)))


@pytest.mark.parametrize("n_rows", [3, 400, 2000])
def test_entries_are_sorted_by_their_feature(n_rows: int) -> None:
    entries = Entries.of_features(largest_of_rows(randn(n_rows, 48), 32), torch.ones(n_rows, 32, dtype=torch.bool), 48)
    assert torch.equal(entries.by_feature, entries.feature.argsort(stable=True))


@pytest.mark.parametrize("k", [0, 4, 128])
def test_decoding_few_features_is_the_dense_product(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    feature_acts, W_dec = torch.zeros(2, 300, 512), randn(512, 128)
    if k:
        feature_acts = keep_largest(randn(2, 300, 512), k)
    n_bags = 0
    sum_rows = sparse.sum_rows

    def counted(*args: Any) -> Tensor:
        nonlocal n_bags
        n_bags += 1
        return sum_rows(*args)

    monkeypatch.setattr(sparse, "sum_rows", counted)
    assert_close(decode_few(feature_acts, W_dec), feature_acts @ W_dec, rtol=1e-5, atol=1e-5)
    assert n_bags == (k < 128)
    decode_few(feature_acts, W_dec.requires_grad_()).sum().backward()
    assert n_bags == (k < 128)
    assert W_dec.grad is not None
