"""Measure when features fire: how long they stay on, how often they return, and where in the context. It applies to an SAE of any architecture.

With a_t in {0, 1} for whether a feature fires at position t, and sums over all contexts:

    persistence            sum a_t a_{t+1} / sum a_t                                   P(fires at t + 1 | fires at t)
    mean run length        sum a_t / (sum a_t - sum a_t a_{t+1})                       firings by runs: a firing without a next one ends a run
    autocorrelation at L   (E[a_t a_{t+L}] - E[a_t] E[a_{t+L}]) / sqrt(Var[a_t] Var[a_{t+L}])
    rate by position       sum a_t / number of positions, over the positions of a bin

A pair (t, t + L) counts if both positions count (special tokens and padding do not) and no wall lies between them. The denominator of the
persistence and the means of the autocorrelation have the same pairs. A run ends at a wall and at the end of its context.

**Control.** A feature can persist because it fires at certain positions of every context, such as the first ones. So every number stands beside
the same number with a_{t+L} taken from **another context at the same position**. It is the mean over all other contexts, so no random
permutation is drawn:

    a_t a_{t+L}  ->  a_t (n_{t+L} - a_{t+L}) / (m_{t+L} - 1)        n: contexts in which the feature fires there; m: contexts that count there

The rate by position is the same under this control. A shuffle within a context would make it flat, and the control would then count the effect
of the position as persistence.

Persistence is a transition probability of the two-state Markov chain of Gabriel and Neumann (1962); the autocorrelation is Pearson's, as in Box
and Jenkins (1970); the control is the shift predictor of Perkel, Gerstein and Moore (1967), with contexts for trials.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE
from torch import Tensor

from mtsae_lens.data.masks import zero_rows
from mtsae_lens.errors import DataError
from mtsae_lens.records import MaybeNaN, Record

FIRING_LAGS = (1, 2, 4, 8, 16)
N_POSITION_BINS = 8
_QUANTILES = (0.1, 0.5, 0.9)
_LEAST_FIRINGS = 8 * N_POSITION_BINS
"""Firings from which on a feature counts in the quantiles; a feature with fewer says more about the sample than about itself."""


@dataclass(frozen=True)
class FiringSummary(Record):
    """When the features of an SAE fire. Means are over firings; quantiles over features with at least 64 firings."""

    n_features: int
    """Number of features that were measured."""
    n_frequent: int
    """Those in the quantiles."""
    persistence: MaybeNaN
    persistence_control: MaybeNaN
    persistence_quantiles: dict[str, MaybeNaN]
    persistence_control_quantiles: dict[str, MaybeNaN]
    mean_run_length: MaybeNaN
    mean_run_length_control: MaybeNaN
    lags: tuple[int, ...]
    autocorrelation: tuple[MaybeNaN, ...]
    """By lag."""
    autocorrelation_control: tuple[MaybeNaN, ...]
    first_positions: tuple[int, ...]
    """First position of each bin of positions in the context."""
    relative_rate_quantiles: dict[str, tuple[MaybeNaN, ...]]
    """Firing rate in each bin over the rate in all of them; the same under the control."""


@dataclass(frozen=True, eq=False)
class FiringInTime:
    """When each feature fires. A number that does not exist is NaN, such as the persistence of a feature that never fired."""

    n_active: Int[Tensor, " feature"]
    persistence: Float[Tensor, " feature"]
    persistence_control: Float[Tensor, " feature"]
    mean_run_length: Float[Tensor, " feature"]
    mean_run_length_control: Float[Tensor, " feature"]
    lags: tuple[int, ...]
    autocorrelation: Float[Tensor, "lag feature"]
    autocorrelation_control: Float[Tensor, "lag feature"]
    first_positions: tuple[int, ...]
    rate: Float[Tensor, "bin feature"]
    relative_rate: Float[Tensor, "bin feature"]

    def summary(self) -> FiringSummary:
        """Summarize the features: means over firings, and quantiles over the features that fire often enough."""
        frequent = self.n_active >= _LEAST_FIRINGS

        def quantiles(values: Float[Tensor, " feature"]) -> dict[str, float]:
            known = values[frequent & ~values.isnan()]
            return {f"{q:.0%}": float(known.quantile(q)) if len(known) else torch.nan for q in _QUANTILES}

        def over_firings(values: Float[Tensor, " feature"]) -> float:
            known = ~values.isnan()
            return float((values[known] * self.n_active[known]).sum() / self.n_active[known].sum())

        def over_runs(lengths: Float[Tensor, " feature"]) -> float:
            fires = self.n_active > 0
            return float(self.n_active[fires].sum() / (self.n_active[fires] / lengths[fires]).sum())

        by_bin = [quantiles(values) for values in self.relative_rate]
        return FiringSummary(
            n_features=len(self.n_active),
            n_frequent=int(frequent.sum()),
            persistence=over_firings(self.persistence),
            persistence_control=over_firings(self.persistence_control),
            persistence_quantiles=quantiles(self.persistence),
            persistence_control_quantiles=quantiles(self.persistence_control),
            mean_run_length=over_runs(self.mean_run_length),
            mean_run_length_control=over_runs(self.mean_run_length_control),
            lags=self.lags,
            autocorrelation=tuple(over_firings(values) for values in self.autocorrelation),
            autocorrelation_control=tuple(over_firings(values) for values in self.autocorrelation_control),
            first_positions=self.first_positions,
            relative_rate_quantiles={name: tuple(values[name] for values in by_bin) for name in by_bin[0]},
        )


class PairCounts:
    """Sums over contexts, by position, from which `FiringInTime` is made. Memory grows with `n_positions * n_features * n_lags`.

    Args:
        n_positions: positions of a context.
        n_features: number of features.
        lags: lags of the autocorrelation, with 1 among them.

    Raises:
        DataError: the lags lack 1.
    """

    def __init__(self, n_positions: int, n_features: int, lags: tuple[int, ...] = FIRING_LAGS) -> None:
        if 1 not in lags:
            raise DataError(f"expected lags with 1 among them, for the persistence, got {lags}; add 1")
        self.lags = lags
        n_lags = len(lags)
        self.n_contexts = 0
        self.counted = torch.zeros(n_positions, dtype=torch.long)
        self.fired = torch.zeros(n_positions, n_features, dtype=torch.long)
        # over pairs (t, t + lag), at t: their number, and how often the feature fires at the first, at the second and at both positions
        self.pairs = torch.zeros(n_lags, n_positions, dtype=torch.long)
        self.first, self.second, self.both = torch.zeros(3, n_lags, n_positions, n_features, dtype=torch.int32)

    def add(self, active: Bool[Tensor, "batch pos feature"], counted: Bool[Tensor, "batch pos"]) -> None:
        """Add whole contexts.

        Args:
            active: where each feature fires.
            counted: the positions that count; the others are walls.
        """
        n_contexts, n_positions, n_features = active.shape
        active = (active & counted.unsqueeze(-1)).cpu()
        counted = counted.cpu()
        fires = active.flatten()
        place = fires.nonzero().squeeze(1)
        row, feature = place // n_features, place % n_features
        position = row % n_positions
        n_places = n_positions * n_features

        def by_place(chosen: Tensor, back: int = 0) -> Tensor:
            at = (position[chosen] - back) * n_features + feature[chosen]
            return torch.bincount(at, minlength=n_places).view(n_positions, n_features)

        self.n_contexts += n_contexts
        self.counted += counted.sum(dim=0)
        self.fired += by_place(torch.ones_like(place, dtype=torch.bool))
        segments = (~counted).long().cumsum(dim=1)
        for number, lag in enumerate(self.lags):
            paired = torch.zeros_like(counted)
            paired[:, : max(n_positions - lag, 0)] = (segments[:, :-lag] == segments[:, lag:]) & counted[:, :-lag]
            self.pairs[number] += paired.sum(dim=0)
            pair = paired.flatten()
            begins = pair[row]
            ends = (position >= lag) & pair[(row - lag).clamp(min=0)]
            lasts = begins.clone()
            lasts[begins] = fires[place[begins] + lag * n_features]
            for sums, chosen, back in ((self.first, begins, 0), (self.second, ends, lag), (self.both, lasts, 0)):
                sums[number] += by_place(chosen, back).int()

    def measure(self) -> FiringInTime:
        """Compute the metrics of each feature, and their controls.

        Raises:
            DataError: there are fewer than 2 contexts, so none has another one to be compared with.
        """
        if self.n_contexts < 2:
            raise DataError(
                f"expected at least 2 contexts, because the control reads another one, got {self.n_contexts}; give more text"
            )
        own, control = [], []
        both_next: dict[str, Tensor] = {}
        for number, lag in enumerate(self.lags):
            end = max(len(self.counted) - lag, 0)
            n = self.fired[lag:].double()
            others = (self.counted[lag:] - 1).clamp(min=1).double().unsqueeze(1)
            first, second, both = (sums[number, :end].double() for sums in (self.first, self.second, self.both))
            pairs = self.pairs[number, :end].double().unsqueeze(1)
            both_elsewhere = (first * n - both) / others
            second_elsewhere = (pairs * n - second) / others
            n_pairs = pairs.sum()
            p_first = first.sum(dim=0) / n_pairs
            own.append(_correlation(both.sum(dim=0) / n_pairs, p_first, second.sum(dim=0) / n_pairs))
            control.append(_correlation(both_elsewhere.sum(dim=0) / n_pairs, p_first, second_elsewhere.sum(dim=0) / n_pairs))
            if lag == 1:
                both_next = {"own": both.sum(dim=0), "control": both_elsewhere.sum(dim=0)}
                n_first = first.sum(dim=0)
        n_active = self.fired.sum(dim=0)
        edges = sorted({round(part * len(self.counted) / N_POSITION_BINS) for part in range(N_POSITION_BINS)})
        bins = torch.bucketize(torch.arange(len(self.counted)), torch.tensor(edges[1:]), right=True)
        fired = torch.zeros(len(edges), len(n_active), dtype=torch.float64).index_add_(0, bins, self.fired.double())
        counted = torch.zeros(len(edges), dtype=torch.float64).index_add_(0, bins, self.counted.double())
        rate = fired / counted.unsqueeze(1)
        return FiringInTime(
            n_active=n_active,
            persistence=both_next["own"] / n_first,
            persistence_control=both_next["control"] / n_first,
            mean_run_length=n_active / (n_active - both_next["own"]),
            mean_run_length_control=n_active / (n_active - both_next["control"]),
            lags=self.lags,
            autocorrelation=torch.stack(own),
            autocorrelation_control=torch.stack(control),
            first_positions=tuple(edges),
            rate=rate,
            relative_rate=rate / (n_active / self.counted.sum()),
        )


def _correlation(both: Tensor, first: Tensor, second: Tensor) -> Float[Tensor, " feature"]:
    """Return Pearson's correlation of two events from their probabilities; NaN where one of them does not vary."""
    variance = first * (1 - first) * second * (1 - second)
    return torch.where(variance > 0, (both - first * second) / variance.clamp(min=1e-300).sqrt(), torch.nan)


@torch.no_grad()
def measure_firing(
    sae: SAE[Any],
    batches: Iterable[tuple[Float[Tensor, "batch pos *heads d_in"], Bool[Tensor, "batch pos"]]],
    features: Int[Tensor, " feature"],
) -> FiringInTime:
    """Measure when features fire, in one pass over contexts of one length.

    Args:
        sae: the SAE.
        batches: activations at its hook, and which positions count: neither special tokens nor padding.
        features: indices of the features.

    Raises:
        DataError: there are fewer than 2 contexts.
    """
    counts: PairCounts | None = None
    for h, counted in batches:
        acts = sae.encode(zero_rows(h, ~counted).to(sae.device)).reshape(*h.shape[:2], -1)[..., features]
        counts = counts or PairCounts(h.shape[1], len(features))
        counts.add(acts != 0, counted)
    if counts is None:
        raise DataError("expected at least 2 contexts, because the control reads another one, got none; give more text")
    return counts.measure()
