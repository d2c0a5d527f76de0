"""Do the scales carry different things? How well each scale alone predicts a feature, and how the answer differs between features.

For every feature, ridge regressions of its activation on the vectors `z_k` of the scales, fitted on one set of contexts and scored on
another: on each scale alone, on all, and on all but one (the drop is what only that scale knows; commonality analysis, Newton and
Spurrell 1967).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mtsae_lens.data.massive import massive_positions, norm_limit
from mtsae_lens.progress import track
from mtsae_lens.sae.mtsae import TemporalEncoder
from mtsae_lens.sae.temporal import find_walls


@dataclass(frozen=True, eq=False)
class ScalePredictivity:
    """R^2 on held-out contexts: 1 is perfect, 0 as good as the feature's mean. Features that never fire are NaN."""

    alone: Float[Tensor, "n_scales feature"]
    all: Float[Tensor, " feature"]
    unique: Float[Tensor, "n_scales feature"]
    """`all` minus the R^2 of all scales but this one."""

    def summary(self, dilations: Iterable[int]) -> dict[str, float]:
        """Average over the features that fire, and how much the answer differs between them.

        `alone_r`, `unique_r`: means for dilation r. `leading_r`: share of features whose best scale alone is r. `spread`: mean over
        scales of the standard deviation over features of `alone` (0 if every feature reads the scales in the same way).
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
    """Second moments of regressors and targets, a constant among the regressors."""

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
            x = sae.process_sae_in(h)
            keep = ~find_walls(x)
            rows = h.flatten(keep.ndim)
            limit = norm_limit(rows[keep]) if limit is None else limit
            keep &= ~massive_positions(rows, limit)
            z = sae.encode_scales(x)[keep].flatten(1)
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
        """Compute R2 of a linear prediction from the moments alone."""
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
    """Regress features on scales. Memory: `(n_scales * d_in) ** 2 + n_scales * d_in * n_features` numbers.

    Args:
        sae: the encoder.
        fit_on: contexts that the regressions are fitted on.
        score_on: other contexts, that they are scored on.
        features: indices of the features to predict; None for all.
        ridge: penalty, as a share of the mean squared regressor.
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
