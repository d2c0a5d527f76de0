"""Explained variance with massive activations left out (`mtsae_lens.data.massive`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Bool, Float
from sae_lens import SAE
from torch import Tensor

from mtsae_lens.data.massive import massive_positions, norm_limit


class ExplainedVariance:
    """Sums over rows, of which the explained variance `1 - sum ||x - x'||^2 / sum ||x - mean(x)||^2` is made."""

    def __init__(self) -> None:
        self.n_rows = 0
        self._error = torch.zeros((), dtype=torch.float64)
        self._squares, self._total = self._error.clone(), self._error.clone()

    def add(self, x: Float[Tensor, "row d_in"], reconstruction: Float[Tensor, "row d_in"]) -> None:
        """Add rows and their reconstructions."""
        x, reconstruction = x.cpu().double(), reconstruction.cpu().double()
        self._error += (x - reconstruction).pow(2).sum()
        self._squares += x.pow(2).sum()
        self._total = self._total + x.sum(dim=0)
        self.n_rows += len(x)

    @property
    def value(self) -> float:
        """The explained variance; NaN where nothing varies."""
        variance = self._squares - self._total.pow(2).sum() / max(self.n_rows, 1)
        return float(1 - self._error / variance) if variance > 0 else float("nan")


@torch.no_grad()
def explain_without_massive(
    sae: SAE[Any], batches: Iterable[tuple[Float[Tensor, "batch pos *heads d_in"], Bool[Tensor, "batch pos"]]]
) -> tuple[float, int]:
    """Compute the explained variance over the positions that are not massive.

        1 - sum_t ||h_t - h'_t||^2 / sum_t ||h_t - mean(h)||^2

    Args:
        sae: the SAE.
        batches: activations at its hook, with heads where the hook has them, and which positions count. The first batch sets the norm above
            which a position is massive.

    Returns:
        The explained variance (NaN where nothing varies), and the number of massive positions that were left out.
    """
    limit, n_massive, explained = torch.inf, 0, ExplainedVariance()
    for number, (h, counted) in enumerate(batches):
        rows = h.flatten(2).float()
        if number == 0:
            limit = norm_limit(rows[counted])
        massive = massive_positions(rows, limit) & counted
        kept = counted & ~massive
        out = sae(h.masked_fill(~counted.view(*counted.shape, *(1,) * (h.ndim - 2)), 0.0)).flatten(2).float()
        explained.add(rows[kept], out[kept])
        n_massive += int(massive.sum())
    return explained.value, n_massive
