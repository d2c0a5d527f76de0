"""Where an activation stands among all of its feature's firings, read off the histogram."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def quantile(activation: float, histogram: Sequence[int], edges: Sequence[float], max_activation: float) -> float | None:
    """The share of a feature's firings that are no stronger, between 0 and 1; 1 for the strongest alone.

    Inside a bin firings are taken as even, in the last one up to the strongest. The error is at most the share of firings in one bin.

    Args:
        activation: of one firing.
        histogram: firings per bin.
        edges: of the bins; one more than bins, upwards.
        max_activation: of the strongest firing; the part of its bin beyond it is empty, and a last bin holds what lies beyond its edge.

    Returns:
        None where there is no histogram to read it off.
    """
    total = sum(histogram)
    if not total or len(edges) != len(histogram) + 1:
        return None
    if activation >= max_activation:
        return 1.0
    capped = np.minimum(edges, max_activation)
    capped[-1] = max_activation
    return float(np.interp(activation, capped, np.concatenate([[0.0], np.cumsum(histogram) / total])))
