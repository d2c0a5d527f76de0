"""Where an activation stands among all of its feature's firings, read off the histogram."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def quantile(activation: float, histogram: Sequence[int], edges: Sequence[float]) -> float | None:
    """The share of a feature's firings that are no stronger, between 0 and 1.

    Inside a bin firings are taken as even. The error is at most the share of firings in one bin.

    Args:
        activation: of one firing.
        histogram: firings per bin.
        edges: of the bins; one more than bins, upwards.

    Returns:
        None where there is no histogram to read it off.
    """
    total = sum(histogram)
    if not total or len(edges) != len(histogram) + 1:
        return None
    return float(np.interp(activation, edges, np.concatenate([[0.0], np.cumsum(histogram) / total])))
