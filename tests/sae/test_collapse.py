"""Test when an SAE counts as collapsed."""

from __future__ import annotations

import pytest
import torch

from mtsae_lens.sae.collapse import FiringCounts, count_always_on, firing_counts


def test_counts() -> None:
    rates = torch.tensor([0.0, 0.0, 0.5, 0.51, 1.0, 0.01])
    assert count_always_on(rates) == 2
    counts = firing_counts(rates)
    assert (counts.n_features, counts.n_silent, counts.n_always_on) == (6, 2, 2)
    assert counts.l0 == pytest.approx(2.02)
    assert firing_counts(rates.tolist()) == counts


@pytest.mark.parametrize(
    ("counts", "collapsed"),
    [
        (FiringCounts(1024, 938, 31, 32.0), True),  # Gemma-3-270M, layer 9, b_dec from zero
        (FiringCounts(1024, 0, 0, 32.0), False),  # the same from the mean
        (FiringCounts(1024, 496, 2, 32.0), False),  # a good SAE on few tokens
        (FiringCounts(1024, 900, 2, 32.0), False),  # mostly dead, but what lives is sparse
        (FiringCounts(1024, 10, 300, 400.0), False),  # dense, by too weak a penalty
        (FiringCounts(1024, 1024, 0, 0.0), False),  # dead altogether: another fault, and seen at once
    ],
)
def test_collapsed(counts: FiringCounts, collapsed: bool) -> None:
    assert counts.collapsed is collapsed
    assert (counts.warning is not None) is collapsed


def test_the_warning_is_one_line_that_says_what_to_do() -> None:
    warning = FiringCounts(1024, 938, 31, 32.0).warning
    assert warning is not None
    assert "\n" not in warning
    assert "31 features fire on over half of the tokens (L0 32.0) and 938 of 1,024 are silent" in warning
    assert "b_dec_init: mean" in warning
