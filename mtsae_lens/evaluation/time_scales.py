"""Measure the time scale of a feature, from its encoder and from its activations.

The *lift* of an offset is what that offset adds to the feature's pre-activation when the feature fires, beyond what it adds on average,

    lift_j(o) = E[c_oj | e_j > 0] - E[c_oj],    sum_o lift_j(o) = E[pre_j | e_j > 0] - E[pre_j]

with `c_oj` from `offset_contributions`. Its distribution over the offsets is the temporal profile of the feature.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtsae_lens.progress import track
from mtsae_lens.sae.contributions import offset_contributions
from mtsae_lens.sae.lift import share_of_context
from mtsae_lens.sae.temporal_encoder import TemporalEncoder


@dataclass(frozen=True, eq=False)
class TemporalProfiles:
    """The offsets from which each feature takes its evidence."""

    offsets: tuple[int, ...]
    shares: Float[Tensor, "feature offset"]
    """Lift of each offset as a share of the feature's total lift; sums to 1. All zero for a feature that never fired."""
    n_active: Int[Tensor, " feature"]

    @property
    def context_share(self) -> Float[Tensor, " feature"]:
        """Return the share of a feature's lift that comes from other positions: 0 for a pointwise feature, 1 for context alone."""
        return share_of_context(self.shares, self.offsets)

    @property
    def context_lag(self) -> Float[Tensor, " feature"]:
        """Return the geometric mean of the distances that a feature reads, weighted by their shares, in positions; NaN if it reads only
        its own position.
        """
        others = [place for place, offset in enumerate(self.offsets) if offset != 0]
        distance = torch.tensor([float(abs(self.offsets[place])) for place in others])
        weights = self.shares[:, others].clamp(min=0)
        return 2 ** ((weights * distance.log2()).sum(dim=-1) / weights.sum(dim=-1))

    def share_at(self, lags: Iterable[int]) -> Float[Tensor, " feature"]:
        """Sum the shares of chosen lags; a lag that the encoder does not read adds nothing.

        Args:
            lags: distances back from the current position, in positions.
        """
        places = [self.offsets.index(-lag) for lag in lags if -lag in self.offsets]
        return self.shares[:, places].sum(dim=-1)


@torch.no_grad()
def temporal_profiles(
    sae: TemporalEncoder, batches: Iterable[Float[Tensor, "_ _ d_in"]], features: Int[Tensor, " feature"]
) -> TemporalProfiles:
    """Compute the temporal profiles of features over contexts in one pass, walls left out.

    Args:
        sae: the encoder.
        batches: whole contexts, `(batch, pos, d_in)`.
        features: indices of the features.
    """
    n_offsets, n_features = len(sae.read_offsets), len(features)
    total, at_active = torch.zeros(2, n_offsets, n_features, dtype=torch.float64)
    n_active, n_positions = torch.zeros(n_features, dtype=torch.long), 0
    for h in track(batches, "reading the offsets of features", "batch"):
        keep = ~sae.read_contexts(h)[1]
        contributions = offset_contributions(sae, h, features)[keep]
        active = sae.encode(h)[..., features][keep] > 0
        total += contributions.sum(dim=0).cpu().double()
        at_active += torch.einsum("rof,rf->of", contributions, active.to(contributions)).cpu().double()
        n_active += active.sum(dim=0).cpu()
        n_positions += int(keep.sum())
    lift = at_active / n_active.clamp(min=1) - total / max(n_positions, 1)
    lift[:, n_active == 0] = 0
    whole = lift.sum(dim=0)
    shares = torch.where(whole.abs() > 0, lift / whole, 0.0)
    return TemporalProfiles(tuple(sae.read_offsets), shares.T.float(), n_active)


def mean_run_length(active: Bool[Tensor, "batch pos feature"]) -> Float[Tensor, " feature"]:
    """Compute the mean number of consecutive positions at which a feature fires, a time scale that every SAE has.

    Args:
        active: mask of the positions at which each feature fires.

    Returns:
        One length per feature, in positions; 0 if it never fires.
    """
    before = torch.nn.functional.pad(active, (0, 0, 1, 0))[:, :-1]
    n_runs = (active & ~before).sum(dim=(0, 1))
    return active.sum(dim=(0, 1)) / n_runs.clamp(min=1)


def nearest_class(
    statistic: Float[Tensor, " feature"], calibration: Float[Tensor, " other"], classes: Int[Tensor, " other"]
) -> Int[Tensor, " feature"]:
    """Assign each feature to the class with the nearest mean of the logarithm of a statistic; the means come from other features.

    Args:
        statistic: one value per feature.
        calibration: the statistic of the other features.
        classes: their classes.

    Returns:
        One class per feature.
    """
    names = classes.unique()
    logs = calibration.clamp(min=1e-6).log2().nan_to_num()
    means = torch.stack([logs[classes == name].mean() for name in names])
    distance = (statistic.clamp(min=1e-6).log2().nan_to_num()[:, None] - means).abs()
    return names[distance.argmin(dim=-1)]
