"""Compute intervals by resampling documents, because the tokens of one document are not independent.

All are 95% percentile-bootstrap intervals (Efron & Tibshirani 1993). With a single document the interval is the point estimate.
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
    """Compute the 95% interval of `sum(delta) / sum(tokens)`, resampling documents with both of their sums (paired).

    Args:
        delta_sums: change of the loss by document, `(document,)`, summed over tokens.
        n_tokens: tokens by document, `(document,)`. Documents without a counted token are left out.
        seed: seed of the resampling.

    Returns:
        Lower and upper end. With a single document, both are the point estimate.
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
    """Compute the 95% interval of the mean of items (of a share, if they are 0 or 1), resampling documents with all their items.

    Args:
        values: one value per item.
        documents: for each item, the document that it belongs to.
        seed: seed of the resampling.

    Returns:
        Lower and upper end.

    Raises:
        DataError: there are no items, or not as many documents as items.
    """
    if len(values) != len(documents) or not documents:
        raise DataError(
            f"expected one document name per item, got {len(values)} items and {len(documents)} names; give one for each item"
        )
    _, place = np.unique(np.array(documents), return_inverse=True)
    sums = np.bincount(place, weights=values.double().numpy())
    return delta_interval(torch.from_numpy(sums), torch.from_numpy(np.bincount(place).astype(float)), seed)


def ratio_interval(
    numerators: Float[Tensor, " document"], denominators: Float[Tensor, " document"], seed: int
) -> tuple[float, float]:
    """Compute the 95% interval of `sum(numerators) / sum(denominators)`, resampling documents with both of their sums.

    Args:
        numerators: one sum per document, of any sign.
        denominators: one sum per document. Their total should be far from 0 in every resample.
        seed: seed of the resampling.

    Returns:
        Lower and upper end. With a single document, both are the point estimate.
    """
    weights = _document_weights(len(numerators), N_RESAMPLES, np.random.default_rng(seed % 2**32))
    ratios = (weights @ numerators.double().numpy()) / (weights @ denominators.double().numpy())
    low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def two_level_interval(
    sums: Sequence[Float[Tensor, " document"]],
    n_tokens: Sequence[Float[Tensor, " document"]],
    seed: int,
    *,
    shared_documents: bool = True,
) -> tuple[float, float]:
    """Compute the 95% interval of an effect over seeds and documents, `mean over seeds of sum(effect) / sum(tokens)`.

    Each resample draws seeds, and then documents of each drawn seed. The interval is for another seed on other text of the same kind.
    With few seeds it is too narrow: with `n` seeds, the variance between seeds is underestimated by a factor of about `1 - 1/n`.

    Args:
        sums: for each seed, the effect by document.
        n_tokens: for each seed, the tokens by document.
        seed: seed of the resampling.
        shared_documents: whether every seed was measured on the same documents in the same order. Then one draw of documents is used
            for all seeds, because an effect that a document has on all of them does not average out (Owen 2007). Otherwise documents
            are drawn separately for each seed.

    Returns:
        Lower and upper end.

    Raises:
        DataError: there are no seeds, or shared documents differ in number.
    """
    sizes = [(len(s), len(n)) for s, n in zip(sums, n_tokens, strict=True)]
    if not sizes or any(s != n or not s for s, n in sizes) or (shared_documents and len(set(sizes)) > 1):
        raise DataError(
            f"expected sums and tokens of the same documents for each seed, got {sizes} documents by seed; "
            + (
                "give shared_documents=False if each seed has its own documents"
                if shared_documents
                else "give one of each per document"
            )
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
    """Draw how often each document occurs in each resample, `(resample, document)`."""
    return rng.multinomial(n_documents, np.full(n_documents, 1 / n_documents), size=n_resamples).astype(float)
