"""Select dilations from data, one after another: those whose taps predict the current activations best.

This is the forward selection of lags for autoregressive models. With `S` the lags read so far, the next dilation r is the one that most
raises the R^2 of predicting the activations `x[t]` linearly from `x[t - l]`, for l in S and {r, 2r, ..., (kernel_size - 1) r}.
Activations are stationary enough that the lag covariances `C(l) = E[x[t] x[t - l]']` suffice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.training.start import RowStatistics

N_COMPONENTS = 64
"""Number of principal components that are predicted: enough to distinguish lags, and cheap at any width."""

_RIDGE = 1e-3  # relative to the mean variance


def lag_covariances(
    h: Float[Tensor, "batch pos d_in"], masked: Bool[Tensor, "batch pos"], max_lag: int, n_components: int = N_COMPONENTS
) -> Float[Tensor, "n_lags component component"]:
    """Compute `C(l) = E[x[t] x[t - l]']` for l = 0, ..., max_lag, over positions that are not masked.

    Args:
        h: contexts, `(batch, pos, d_in)`.
        masked: the masked positions.
        max_lag: the largest lag.
        n_components: number of leading principal components that stand for the activations.

    Returns:
        Covariances `(max_lag + 1, component, component)`.

    Raises:
        DataError: all positions are masked, or the activations do not vary or are not finite.
    """
    keep = ~masked
    if not keep.any():
        raise DataError("expected activations to select dilations from, got none: every position is masked; give text")
    kept = h[keep]
    RowStatistics.of([kept], h.shape[-1])  # raises for activations that do not vary
    mean = kept.mean(dim=0)
    _, _, components = torch.linalg.svd(kept[:: max(1, len(kept) // 20_000)] - mean, full_matrices=False)
    x = ((h - mean) @ components[:n_components].T).masked_fill(~keep.unsqueeze(-1), 0.0)
    covariances = []
    for lag in range(max_lag + 1):
        now, then = slice(lag, None), slice(None, h.shape[1] - lag)
        n_pairs = (keep[:, now] & keep[:, then]).sum().clamp(min=1)
        covariances.append(torch.einsum("bpi,bpj->ij", x[:, now], x[:, then]) / n_pairs)
    return torch.stack(covariances).cpu().double()  # some devices lack float64


def predictability(covariances: Float[Tensor, "n_lags component component"], lags: Sequence[int]) -> float:
    """Compute the R^2 of predicting `x[t]` linearly from `x[t - l]`.

    Args:
        covariances: from `lag_covariances`.
        lags: the lags l.

    Returns:
        R^2; 0 without lags.
    """
    if not lags:
        return 0.0
    variance = covariances[0]
    rows = [
        torch.cat([covariances[b - a] if b >= a else covariances[a - b].T for b in lags], dim=1) for a in lags
    ]  # E[x[t - a] x[t - b]'] = C(b - a)
    gram = torch.cat(rows)
    gram = gram + _RIDGE * variance.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    cross = torch.cat([covariances[lag] for lag in lags], dim=1)
    explained = (cross * torch.linalg.solve(gram, cross.T).T).sum()
    return float(explained / variance.diagonal().sum())


def select_dilations(
    h: Float[Tensor, "batch pos d_in"],
    masked: Bool[Tensor, "batch pos"],
    n_dilations: int = 4,
    *,
    kernel_size: int = 3,
    max_lag: int | None = None,
    n_components: int = N_COMPONENTS,
) -> tuple[int, ...]:
    """Select the dilations whose taps predict the activations best.

    Args:
        h: contexts, `(batch, pos, d_in)`.
        masked: the masked positions, which predict nothing and are not predicted.
        n_dilations: how many to select in addition to 0.
        kernel_size: number of taps of a scale; dilation r reads the lags r, ..., (kernel_size - 1) r.
        max_lag: the farthest lag that a tap may read; None for half the context, so that every lag has enough pairs.
        n_components: number of principal components that are predicted.

    Returns:
        0, for the token alone, and the selected dilations in ascending order.

    Raises:
        ConfigError: there are fewer possible dilations than asked for.
        DataError: all positions are masked, or the activations do not vary or are not finite.
    """
    if kernel_size < 2:
        raise ConfigError(
            "expected kernel_size of at least 2 to select dilations, got 1, which reads no other position; raise it"
        )
    max_lag = h.shape[1] // 2 if max_lag is None else max_lag
    candidates = list(range(1, max_lag // max(1, kernel_size - 1) + 1))
    if not 0 < n_dilations <= len(candidates):
        raise ConfigError(
            f"expected n_dilations from 1 to {len(candidates)}, the dilations whose taps stay within {max_lag} positions, got {n_dilations}; "
            "give the dilations yourself, a longer context or a smaller kernel_size"
        )
    covariances = lag_covariances(h, masked, max_lag, n_components)
    chosen: list[int] = []
    lags: set[int] = set()
    while len(chosen) < n_dilations:
        taps = {r: lags | {r * tap for tap in range(1, kernel_size)} for r in candidates if r not in chosen}
        scores = {r: predictability(covariances, sorted(read)) for r, read in taps.items()}
        best = max(scores, key=scores.__getitem__)
        chosen.append(best)
        lags = taps[best]
    return (0, *sorted(chosen))
