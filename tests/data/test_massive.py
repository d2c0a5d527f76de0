"""Massive activations: found, left out of training batches, and still read by others."""

from __future__ import annotations

import logging
from itertools import islice

import pytest
import torch
from stored import stored

from mtsae_lens.data.blocks import StoredBlocks
from mtsae_lens.data.massive import find_massive, massive_positions, norm_limit
from mtsae_lens.sae.temporal import gather_reads

POS, D_IN = 8, 4
SINKS = [(0, 1), (3, 2)]


def contexts() -> torch.Tensor:
    h = torch.randn(6, POS, D_IN, generator=torch.Generator().manual_seed(0)) + 1
    h[:, 0] = 0
    for place in SINKS:
        h[place] *= 500
    return h


def stream() -> StoredBlocks:
    return stored(contexts(), batch_size_sequences=2, block_size_batches=3)


def test_the_limit_is_ten_times_the_median_of_the_rows_that_are_not_zero() -> None:
    h = torch.zeros(5, D_IN)
    h[1:, 0] = torch.tensor([1.0, 2.0, 3.0, 21.0])
    assert norm_limit(h) == 20
    assert massive_positions(h, norm_limit(h)).tolist() == [False, False, False, False, True]
    assert norm_limit(torch.zeros(2, D_IN)) == torch.inf


def test_masked_positions_are_not_massive_and_set_no_limit() -> None:
    h = torch.ones(2, 4, D_IN)
    h[0, 1], h[:, 2:] = 20.0, 1e3
    masked = torch.zeros(2, 4, dtype=torch.bool)
    masked[:, 2:] = True
    assert find_massive(h, masked).nonzero().tolist() == [[0, 1]]
    assert find_massive(h, masked, 30.0).nonzero().tolist() == []


def test_massive_rows_are_left_out_of_batches_and_named(caplog: pytest.LogCaptureFixture) -> None:
    h = contexts()
    massive = torch.stack([h[place] for place in SINKS])
    kept = torch.cat(list(islice(stream().mixed(), 3)))
    with caplog.at_level(logging.WARNING, logger="mtsae_lens"):
        rows = torch.cat(list(islice(stream().mixed(max_norm_multiple=10), 3)))
    assert len(kept) == 6 * (POS - 1)
    assert len(rows) == len(kept) - len(SINKS)
    assert not (rows[:, None] == massive).all(dim=-1).any()
    assert (kept[:, None] == massive).all(dim=-1).any(dim=0).all()


def test_nothing_is_left_out_where_nothing_is_massive() -> None:
    h = contexts()
    for place in SINKS:
        h[place] /= 500
    quiet = stored(h, batch_size_sequences=2, block_size_batches=3)
    for ours, all_rows in zip(islice(quiet.mixed(max_norm_multiple=10), 3), islice(quiet.mixed(), 3), strict=True):
        assert torch.equal(ours, all_rows)


def test_other_positions_still_read_a_massive_one() -> None:
    h = contexts()
    rows = torch.cat(
        list(
            islice(stream().mixed(gather=lambda x, masked: gather_reads(x, masked, [0, -1], "causal"), max_norm_multiple=10), 3)
        )
    )
    after = torch.cat([h[0, 2], h[0, 1]])
    assert (rows == after).all(dim=-1).any()
