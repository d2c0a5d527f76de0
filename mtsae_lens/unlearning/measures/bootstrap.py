"""Intervals by resampling documents: tokens of one document are not independent.

All are 95% percentile-bootstrap intervals (Efron & Tibshirani 1993). With a single document there is nothing to resample: the interval
is the point.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from mtsae_lens.errors import DataError

N_RESAMPLES = 2_000
CONFIDENCE = 0.95


def delta_interval(delta_sums: Tensor, n_tokens: Tensor, seed: int) -> tuple[float, float]:
    """Compute the 95% percentile-bootstrap interval of `sum(delta) / sum(tokens)`, resampling documents with both their sums (paired).

    Documents without a counted token are left out. With a single document there is nothing to resample: the interval is the point.
    """
    counted = n_tokens > 0
    sums, counts = delta_sums[counted].numpy(), n_tokens[counted].numpy()
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


def grouped_interval(values: Float[Tensor, " item"], documents: Sequence[str], seed: int) -> tuple[float, float]:
    """Compute the interval of the mean of items (a share, where they are 0 or 1), resampling documents with all their items.

    Raises:
        DataError: not one document for each item, or no item.
    """
    if len(values) != len(documents) or not documents:
        raise DataError(f"each item belongs to one document; got {len(values)} items and {len(documents)} names of documents")
    _, place = np.unique(np.array(documents), return_inverse=True)
    sums = np.bincount(place, weights=values.double().numpy())
    return delta_interval(torch.from_numpy(sums), torch.from_numpy(np.bincount(place).astype(float)), seed)


def two_level_interval(
    sums: Sequence[Float[Tensor, " document"]],
    n_tokens: Sequence[Float[Tensor, " document"]],
    seed: int,
    *,
    shared_documents: bool = True,
) -> tuple[float, float]:
    """Compute the interval of an effect over seeds and documents, `mean over seeds of sum(effect) / sum(tokens)`.

    Each resample draws seeds, then documents of each seed drawn. It answers for another seed on other text of the kind; few seeds make
    it too narrow (with `n` of them the spread between seeds is underestimated by about `1 - 1/n` in variance).

    Args:
        sums: for each seed, the effect by document.
        n_tokens: for each seed, tokens by document.
        seed: of the resampling.
        shared_documents: every seed was measured on the same documents in the same order: one draw of documents serves all seeds, because what
            a document adds to all of them does not average out (Owen 2007). False: each seed has its own.

    Raises:
        DataError: no seed, or documents said to be shared that differ in number.
    """
    sizes = [(len(s), len(n)) for s, n in zip(sums, n_tokens, strict=True)]
    if not sizes or any(s != n or not s for s, n in sizes) or (shared_documents and len(set(sizes)) > 1):
        raise DataError(
            f"each seed needs its sums and tokens of the same documents; got {sizes} documents by seed"
            + ("; pass shared_documents=False where the seeds have documents of their own" if shared_documents else "")
        )
    rng = np.random.default_rng(seed % 2**32)
    effects, counts = [s.double().numpy() for s in sums], [n.double().numpy() for n in n_tokens]
    shared = _document_weights(sizes[0][0], N_RESAMPLES, rng) if shared_documents else None
    draws = rng.integers(len(sizes), size=(N_RESAMPLES, len(sizes)))
    total = np.zeros(N_RESAMPLES)
    for place in range(len(sizes)):
        for one in range(len(sizes)):  # a seed drawn twice draws its documents twice
            drawn = draws[:, place] == one
            weights = shared[drawn] if shared is not None else _document_weights(sizes[one][0], int(drawn.sum()), rng)
            total[drawn] += (weights @ effects[one]) / (weights @ counts[one])
    low, high = np.quantile(total / len(sizes), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _document_weights(n_documents: int, n_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Draw how often each document is drawn in each resample, `(resample, document)`."""
    return rng.multinomial(n_documents, np.full(n_documents, 1 / n_documents), size=n_resamples).astype(float)
