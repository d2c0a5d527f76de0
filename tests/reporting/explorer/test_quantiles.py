"""A quantile read off a histogram is that of the firings themselves, to within a bin."""

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
    assert quantile(value, counts.tolist(), EDGES.tolist()) == pytest.approx((firings <= value).mean(), abs=counts.max() / 1000)


def test_ends_of_the_histogram() -> None:
    assert quantile(1e9, [1, 2], [1.0, 2.0, 3.0]) == 1.0
    assert quantile(0.5, [1, 2], [1.0, 2.0, 3.0]) == 0.0
    assert quantile(2.0, [1, 2], [1.0, 2.0, 3.0]) == pytest.approx(1 / 3)


def test_nothing_to_read() -> None:
    assert quantile(1.0, [0, 0], [1.0, 2.0, 3.0]) is None
    assert quantile(1.0, [], []) is None
