"""Estimate the quantile of an activation among all firings of its feature, from the histogram."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def quantile(activation: float, histogram: Sequence[int], edges: Sequence[float], max_activation: float) -> float | None:
    """Estimate the share of a feature's firings that are no stronger than an activation.

    Firings count as evenly spread within a bin, in the last bin up to the strongest firing. The error is at most the share of the firings in
    one bin.

    Args:
        activation: the activation of one firing.
        histogram: firings per bin.
        edges: edges of the bins, one more than there are bins, increasing.
        max_activation: activation of the strongest firing. Its bin is cut there, and the last bin reaches up to it.

    Returns:
        A share between 0 and 1; 1 for the strongest firing only; None if there is no histogram.
    """
    total = sum(histogram)
    if not total or len(edges) != len(histogram) + 1:
        return None
    if activation >= max_activation:
        return 1.0
    capped = np.minimum(edges, max_activation)
    capped[-1] = max_activation
    return float(np.interp(activation, capped, np.concatenate([[0.0], np.cumsum(histogram) / total])))
