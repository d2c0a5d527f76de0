"""Measure whether scales carry different information: how well each scale alone predicts a feature, and how this differs between features.

For every feature, its activation is regressed on the vectors `z_k` of the scales (ridge regression), fitted on one set of contexts and
scored on
another: on each scale alone, on all scales, and on all but one. The drop when one scale is left out is the part that only this scale
explains (commonality analysis, Newton and Spurrell 1967).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mtsae_lens.data.massive import massive_positions, norm_limit
from mtsae_lens.progress import track
from mtsae_lens.sae.temporal_encoder import TemporalEncoder


@dataclass(frozen=True, eq=False)
class ScalePredictivity:
    """R^2 on held-out contexts: 1 is perfect, 0 is as good as the feature's mean. It is NaN for features that never fire."""

    alone: Float[Tensor, "n_scales feature"]
    all: Float[Tensor, " feature"]
    unique: Float[Tensor, "n_scales feature"]
    """R^2 of all scales, minus the R^2 of all scales but this one."""

    def summary(self, dilations: Iterable[int]) -> dict[str, float]:
        """Average over the features that fire, and measure how much features differ.

        `alone_r` and `unique_r` are means for dilation r. `leading_r` is the share of features whose best single scale is r. `spread`
        is the mean over scales of the standard deviation over features of `alone` (0 if every feature reads the scales in the same
        way).

        Args:
            dilations: the dilation of each scale.
        """
        fires = torch.isfinite(self.all)
        alone, unique = self.alone[:, fires], self.unique[:, fires]
        leading = alone.argmax(dim=0)
        values = {"all": float(self.all[fires].mean()), "spread": float(alone.std(dim=1).mean())}
        for scale, dilation in enumerate(dilations):
            values[f"alone_{dilation}"] = float(alone[scale].mean())
            values[f"unique_{dilation}"] = float(unique[scale].mean())
            values[f"leading_{dilation}"] = float((leading == scale).float().mean())
        return values


@dataclass(eq=False)
class _Moments:
    """Second moments of regressors and targets; the last regressor is a constant."""

    zz: Tensor
    ze: Tensor
    ee: Tensor
    n_rows: int

    @classmethod
    def of(cls, sae: TemporalEncoder, batches: Iterable[Tensor], features: Tensor) -> _Moments:
        """Sum over the positions that are neither walls nor massive (`mtsae_lens.data.massive`)."""
        width = len(sae.cfg.dilations) * sae.cfg.d_in + 1
        total = cls(
            torch.zeros(width, width, dtype=torch.float64),
            torch.zeros(width, len(features), dtype=torch.float64),
            torch.zeros(len(features), dtype=torch.float64),
            0,
        )
        limit = None
        for h in track(batches, "reading scales", "batch"):
            x, walls = sae.read_contexts(h)
            keep = ~walls
            rows = h.flatten(keep.ndim)
            limit = norm_limit(rows[keep]) if limit is None else limit
            keep &= ~massive_positions(rows, limit)
            z = sae.encode_scales(x, walls)[keep].flatten(1)
            z = torch.cat([z, torch.ones_like(z[:, :1])], dim=1)
            feature_acts = sae.encode(h)[..., features][keep]
            total.zz += (z.T @ z).cpu().double()
            total.ze += (z.T @ feature_acts).cpu().double()
            total.ee += feature_acts.pow(2).sum(dim=0).cpu().double()
            total.n_rows += len(z)
        return total

    def fit(self, columns: Tensor, ridge: float) -> Tensor:
        gram = self.zz[columns][:, columns]
        penalty = ridge * gram.diagonal().mean() * torch.eye(len(columns), dtype=gram.dtype)
        penalty[-1, -1] = 0  # the constant
        return torch.linalg.solve(gram + penalty, self.ze[columns])

    def r_squared(self, columns: Tensor, weights: Tensor) -> Tensor:
        """Compute the R^2 of a linear prediction from the moments alone."""
        gram, cross = self.zz[columns][:, columns], self.ze[columns]
        error = self.ee - 2 * (weights * cross).sum(dim=0) + (weights * (gram @ weights)).sum(dim=0)
        variance = self.ee - self.ze[-1] ** 2 / self.n_rows
        return torch.where(variance > 1e-9 * self.n_rows, 1 - error / variance, torch.nan)


@torch.no_grad()
def scale_predictivity(
    sae: TemporalEncoder,
    fit_on: Iterable[Float[Tensor, "_ _ d_in"]],
    score_on: Iterable[Float[Tensor, "_ _ d_in"]],
    features: Int[Tensor, " feature"] | None = None,
    ridge: float = 1e-4,
) -> ScalePredictivity:
    """Regress features on scales. It holds `(n_scales * d_in) ** 2 + n_scales * d_in * n_features` numbers in memory.

    Args:
        sae: the encoder.
        fit_on: contexts that the regressions are fitted on.
        score_on: different contexts that they are scored on.
        features: indices of the features to predict; None for all.
        ridge: penalty, relative to the mean squared regressor.
    """
    chosen = torch.arange(sae.cfg.d_sae) if features is None else features
    fitted, scored = _Moments.of(sae, fit_on, chosen), _Moments.of(sae, score_on, chosen)
    d_in, n_scales = sae.cfg.d_in, len(sae.cfg.dilations)
    constant = torch.tensor([n_scales * d_in])

    def r_squared(scales: list[int]) -> Tensor:
        columns = torch.cat([*(torch.arange(k * d_in, (k + 1) * d_in) for k in scales), constant])
        return scored.r_squared(columns, fitted.fit(columns, ridge)).float()

    every = range(n_scales)
    sets = [list(every), *([k] for k in every), *([i for i in every if i != k] for k in every)]
    everything, *others = [r_squared(scales) for scales in track(sets, "predicting features from scales", "fit")]
    return ScalePredictivity(
        alone=torch.stack(others[:n_scales]), all=everything, unique=torch.stack([everything - r for r in others[n_scales:]])
    )
