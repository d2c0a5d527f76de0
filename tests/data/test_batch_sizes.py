"""Test that batches shrink with the size of the vocabulary and the width of the SAE only."""

from __future__ import annotations

from mtsae_lens.data.batch_sizes import MAX_BYTES, contexts_at_once


def test_what_fits_is_left_as_it_was_asked_for() -> None:
    assert contexts_at_once(16, 128, 4_096) == 16
    assert contexts_at_once(7, 128, 4_096) == 7
    assert contexts_at_once(4, 10, 100, max_bytes=4 * 10 * 100 * 4) == 4


def test_what_does_not_fit_is_halved() -> None:
    assert contexts_at_once(16, 64, 262_144) == 4
    assert 4 * contexts_at_once(16, 64, 262_144) * 64 * 262_144 <= MAX_BYTES
    assert contexts_at_once(4, 10, 100, max_bytes=4 * 10 * 100 * 4 - 1) == 2


def test_there_is_always_a_context() -> None:
    assert contexts_at_once(16, 2_048, 1_000_000) == 1
