"""Test the endless stream of batches of stored contexts."""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stored import position_0, stored

from mtsae_lens.data.blocks import StoredBlocks
from mtsae_lens.errors import DataError
from mtsae_lens.sae.temporal import gather_reads

POS = 3


def numbered(n: int) -> torch.Tensor:
    """Context i holds the value i + 1 and its position; position 0 is masked."""
    h = torch.stack(torch.meshgrid(torch.arange(n) + 1.0, torch.arange(POS) + 0.0, indexing="ij"), dim=-1)
    h[:, 0] = 0
    return h


def contexts_of(batches: Any) -> list[int]:
    rows = torch.cat(list(batches)).view(-1, POS, 2)
    assert (rows[:, 0] == 0).all()
    assert torch.equal(rows[:, 1, 0], rows[:, 2, 0])  # whole
    assert torch.equal(rows[:, 1:, 1], torch.arange(1, POS).expand(len(rows), -1))  # in order
    return (rows[:, 1, 0] - 1).int().tolist()


@settings(deadline=None, max_examples=20, derandomize=True)
@given(n=st.integers(1, 13), batch=st.integers(1, 4), block=st.integers(1, 3))
def test_every_context_exactly_once_an_epoch(n: int, batch: int, block: int) -> None:
    stream = stored(numbered(n), batch, block)
    seen = contexts_of(islice(stream.sequences(), 3 * n))
    for epoch in range(len(seen) // n):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_epochs_have_orders_of_their_own() -> None:
    seen = contexts_of(islice(stored(numbered(12), 3, 4).sequences(), 12))
    epochs = {tuple(seen[first : first + 12]) for first in (0, 12, 24)}
    assert len(epochs) == 3
    assert tuple(range(12)) not in epochs


@pytest.mark.parametrize("kind", ["sequences", "mixed"])
@pytest.mark.parametrize("n", [5, 12, 40])
def test_the_stream_can_be_entered_at_any_step(kind: str, n: int) -> None:
    stream = stored(numbered(n), batch_size_sequences=2, block_size_batches=3, seed=7)
    straight = list(islice(getattr(stream, kind)(), 14))
    for first_step in range(14):
        entered = list(islice(getattr(stream, kind)(first_step), 14 - first_step))
        assert len(entered) == 14 - first_step
        assert all(torch.equal(got, expected) for got, expected in zip(entered, straight[first_step:], strict=True))
    assert len({tuple(batch.flatten().tolist()) for batch in straight}) > 10


@pytest.mark.parametrize("kind", ["sequences", "mixed"])
def test_seeds_differ(kind: str) -> None:
    first, again, other = (
        torch.cat(list(islice(getattr(stored(numbered(12), 2, 6, seed=seed), kind)(), 6))) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert sorted(first.tolist()) == sorted(other.tolist())


def test_mixed_rows_are_the_unmasked_rows_of_the_same_blocks() -> None:
    stream = stored(numbered(8), 2, 2, seed=1)
    for block in range(3):
        sequences = torch.cat(list(islice(stream.sequences(2 * block), 2)))
        batches = list(islice(stream.mixed(2 * block), 2))
        assert sorted(torch.cat(batches).tolist()) == sorted(sequences[(sequences != 0).any(dim=-1)].tolist())
        assert [len(batch) for batch in batches] == [4, 4]
        assert torch.cat(batches).tolist() != sequences[(sequences != 0).any(dim=-1)].tolist()


def test_mixed_rows_bring_along_what_they_read() -> None:
    stream = stored(numbered(8), 2, 2, seed=1)
    wide = next(stream.mixed(gather=partial(gather_reads, offsets=[0, -1], padding="causal")))
    assert torch.equal(wide[:, :2], next(stream.mixed()))
    later = wide[:, 1] == 2
    assert torch.equal(wide[later, 2:], wide[later, :2] - torch.tensor([0.0, 1.0]))
    assert not wide[~later, 2:].any()


@pytest.mark.parametrize("value", [1e6, float("nan")])
def test_masked_rows_are_in_no_batch_whatever_they_hold(value: float) -> None:
    h = numbered(8)
    masked = position_0(h)
    masked[2, 1] = True
    gather = partial(gather_reads, offsets=[0, -1, -2], padding="causal")
    found = []
    for held in (0.0, value):
        h[masked] = held
        stream = StoredBlocks(h, 2, 2, masked=masked)
        ways = (stream.sequences(), stream.mixed(), stream.mixed(gather=gather), stream.mixed(max_norm_multiple=10))
        found.append([torch.cat(list(islice(batches, 4))) for batches in ways])
    assert all(torch.equal(zeros, other) for zeros, other in zip(*found, strict=True))
    assert [len(rows) for rows in found[0]] == [8 * POS, *[8 * (POS - 1) - 1] * 3]


def test_a_row_of_zeros_that_is_not_masked_is_a_row_like_others() -> None:
    h = numbered(8)
    h[2, 1] = 0
    rows = torch.cat(list(islice(stored(h, 2, 2).mixed(), 4)))
    assert len(rows) == 8 * (POS - 1)
    assert (rows == 0).all(dim=-1).sum() == 1


@pytest.mark.wrong_shapes
@pytest.mark.parametrize("masked", [torch.zeros(8, POS), torch.zeros(8, POS + 1, dtype=torch.bool)])
def test_a_mask_of_another_shape_or_dtype_is_refused(masked: torch.Tensor) -> None:
    with pytest.raises(DataError, match=rf"expected masked of shape \(8, {POS}\) and dtype torch.bool, got .*; give one truth"):
        StoredBlocks(numbered(8), 2, masked=masked)


def test_a_block_with_fewer_rows_than_batches_is_refused() -> None:
    h, masked = torch.ones(8, POS, 2), torch.ones(8, POS, dtype=torch.bool)
    masked[3, 1] = False
    with pytest.raises(DataError, match=r"activations at 12 positions, got [01] that are not masked; give text"):
        for _ in islice(StoredBlocks(h, 2, 2, masked=masked).mixed(), 4):
            pass
