"""Intervals by resampling documents: tokens of one document are not independent."""

from __future__ import annotations

import numpy as np
from scipy import stats
from torch import Tensor

N_RESAMPLES = 2_000
CONFIDENCE = 0.95


def delta_interval(delta_sums: Tensor, n_tokens: Tensor, seed: int) -> tuple[float, float]:
    """95% percentile-bootstrap interval of `sum(delta) / sum(tokens)`, resampling documents with both their sums (paired).

    With a single document there is nothing to resample: the interval is the point.
    """
    sums, counts = delta_sums.numpy(), n_tokens.numpy()
    if len(sums) < 2:
        point = float(sums.sum() / counts.sum())
        return point, point
    result = stats.bootstrap(
        (sums, counts),
        lambda s, n, axis: s.sum(axis=axis) / n.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=N_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed % 2**32),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
