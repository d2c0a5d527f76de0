"""Test learned dilations: the grid of lags and how taps read it. That rates learn is a law (`tests/laws.py`)."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from mtsae_lens import MTTrainingSAE, MTTrainingSAEConfig
from mtsae_lens.sae.spacing import lag_grid, learned_filters, spacing_weights


def test_lag_grid() -> None:
    assert lag_grid(16) == [1, 2, 3, 4, 6, 8, 11, 16]
    assert lag_grid(2) == [1, 2]
    assert lag_grid(13) == [1, 2, 3, 4, 6, 8, 11, 13]


@given(max_lag=st.integers(2, 2000))
def test_the_grid_has_both_ends_and_two_lags_an_octave(max_lag: int) -> None:
    lags = lag_grid(max_lag)
    assert (lags[0], lags[-1]) == (1, max_lag)
    assert lags == sorted(set(lags))
    assert all(later <= 2 * earlier for earlier, later in pairwise(lags))
    assert len(lags) <= 2 * max_lag.bit_length() + 1


@settings(deadline=None, max_examples=30, derandomize=True)
@given(rate=st.floats(-1, 8), kernel_size=st.integers(2, 4), width=st.sampled_from([0.05, 0.35, 2.0]))
def test_each_tap_reads_a_whole(rate: float, kernel_size: int, width: float) -> None:
    weights = spacing_weights(torch.tensor([rate], dtype=torch.float64), kernel_size, lag_grid(64), width)
    assert weights.shape == (1, kernel_size - 1, len(lag_grid(64)))
    assert (weights >= 0).all()
    assert_close(weights.sum(dim=-1), torch.ones(1, kernel_size - 1, dtype=torch.float64))


def test_taps_read_a_gaussian_around_their_dilation() -> None:
    """Tap j of a scale of dilation r is centred on lag j * r."""
    lags = [1, 2, 4, 8, 16]
    (weights,) = spacing_weights(torch.tensor([1.0], dtype=torch.float64), 3, lags, width=0.5)
    for tap, centre in enumerate((2, 4)):
        octaves = torch.tensor(lags, dtype=torch.float64).log2() - torch.tensor(float(centre)).log2()
        expected = torch.exp(-(octaves**2) / 0.5)
        assert_close(weights[tap], expected / expected.sum())


def test_filters() -> None:
    """The token's own tap first; a scale that does not move sums its taps there and reads no lag."""
    taps = torch.tensor([[2.0, 3.0, 5.0], [2.0, 3.0, 5.0]], dtype=torch.float64).unsqueeze(-1)
    rates = torch.tensor([0.0, 1.0], dtype=torch.float64)
    lags = [1, 2, 4]
    moving, still = learned_filters(taps, rates, lags, torch.tensor([True, False])).squeeze(-1)
    weights = spacing_weights(rates[:1], 3, lags)[0]
    assert_close(moving, torch.cat([torch.tensor([2.0]).double(), 3 * weights[0] + 5 * weights[1]]))
    assert still.tolist() == [10, 0, 0, 0]


def test_an_sae_reads_the_grid() -> None:
    sae = MTTrainingSAE(MTTrainingSAEConfig(d_in=4, d_sae=8, k=2, learn_dilations=True, max_lag=12, context_size=20))
    assert sae.read_offsets == [0, -1, -2, -3, -4, -6, -8, -11, -12]
    assert sae.receptive_field == (12, 0)
    assert sae.filters.shape == (5, 9, 4)


def test_a_rate_beyond_the_grid_reads_its_end() -> None:
    weights = spacing_weights(torch.tensor([9.0]), 2, [1, 2, 4, 8])
    assert weights[0, 0].argmax() == 3
    assert weights.isfinite().all()


def test_rates_may_not_be_negative_lags() -> None:
    assert all(lag >= 1 for lag in lag_grid(5))
    with pytest.raises(ValueError, match="max_lag"):
        MTTrainingSAEConfig(d_in=4, d_sae=8, k=2, learn_dilations=True, max_lag=0)
