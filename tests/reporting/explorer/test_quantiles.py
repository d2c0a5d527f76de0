"""Test that a quantile from a histogram equals that of the firings, to within a bin."""

from __future__ import annotations

import numpy as np
import pytest

from mtsae_lens.reporting.explorer.quantiles import quantile

EDGES = np.geomspace(0.01, 100, 65)


@pytest.mark.parametrize("place", [0, 17, 500, 999])
def test_agrees_with_counting(place: int) -> None:
    firings = np.random.default_rng(0).lognormal(size=1000)
    counts, _ = np.histogram(firings, EDGES)
    value = float(firings[place])
    found = quantile(value, counts.tolist(), EDGES.tolist(), float(firings.max()))
    assert found == pytest.approx((firings <= value).mean(), abs=counts.max() / 1000)


@pytest.mark.parametrize("maximum", [1.01, 1.5, 2.0, 50.0])
def test_only_the_strongest_is_above_all(maximum: float) -> None:
    """Only the strongest firing has quantile 1, wherever it lies in its bin or beyond the last bin."""
    firings = np.array([0.5] * 6 + list(np.linspace(1.001, maximum, 4)))
    edges = [0.0, 1.0, 2.0, 3.0]
    counts = np.bincount(np.searchsorted(edges, firings, side="right").clip(max=3) - 1, minlength=3).tolist()
    ranks = [quantile(float(value), counts, edges, maximum) for value in firings[6:]]
    assert ranks[-1] == 1.0
    assert ranks == sorted(set(ranks))
    if maximum < 2:
        assert ranks[:-1] == pytest.approx([0.6, 0.6 + 0.4 / 3, 0.6 + 0.8 / 3], abs=0.05)


def test_ends_of_the_histogram() -> None:
    assert quantile(2.5, [1, 2], [1.0, 2.0, 3.0], 2.5) == 1.0
    assert quantile(0.5, [1, 2], [1.0, 2.0, 3.0], 2.5) == 0.0
    assert quantile(2.0, [1, 2], [1.0, 2.0, 3.0], 2.5) == pytest.approx(1 / 3)
    assert quantile(2.25, [1, 2], [1.0, 2.0, 3.0], 2.5) == pytest.approx(2 / 3)  # half of what there is of the last bin


def test_nothing_to_read() -> None:
    assert quantile(1.0, [0, 0], [1.0, 2.0, 3.0], 1.0) is None
    assert quantile(1.0, [], [], 1.0) is None
