"""Count how often, how strongly and for how long every feature fires, as running sums over batches."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtsae_lens.exploration.firings import BatchReading, Firings
from mtsae_lens.exploration.plan import N_HISTOGRAM_BINS, PERSISTENCE_LAGS

# Ends of the histogram, in units of the first batch's largest activation. The outermost bins also count what lies beyond them.
_LOWEST, _HIGHEST = 1e-3, 4.0


@dataclass(eq=False)
class FeatureCounts:
    """Running sums over batches, on the CPU. Their size does not grow with the text.

    Persistence at lag L is `P(fires at t + L | fires at t) = persisted / could_persist`, over the firings whose `t + L` lies in the same
    context with no special token in between. It is unknown if there is no such firing.

    Its control takes the later position from the next context of the batch: `P(fires at t + 1 of that context | fires at t)`, over the
    firings for which that position is counted. A feature that fires at certain positions of every context persists there too.
    """

    n_tokens: Int[Tensor, " corpus"]
    n_active: Int[Tensor, "corpus d_sae"]
    total: Float[Tensor, " d_sae"]
    maximum: Float[Tensor, " d_sae"]
    histogram: Int[Tensor, "d_sae bin"]
    edges: Float[Tensor, " edge"]
    n_runs: Int[Tensor, " d_sae"]
    persisted: Int[Tensor, "lag d_sae"]
    could_persist: Int[Tensor, "lag d_sae"]
    fired_elsewhere: Int[Tensor, " d_sae"]
    could_elsewhere: Int[Tensor, " d_sae"]

    @classmethod
    def empty(cls, n_corpora: int, d_sae: int) -> FeatureCounts:
        """Return the counts before the first batch.

        Args:
            n_corpora: number of corpora.
            d_sae: number of features.
        """

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.long)

        n_lags = len(PERSISTENCE_LAGS)
        return cls(
            n_tokens=zeros(n_corpora),
            n_active=zeros(n_corpora, d_sae),
            total=torch.zeros(d_sae, dtype=torch.float64),
            maximum=torch.zeros(d_sae),
            histogram=zeros(d_sae, N_HISTOGRAM_BINS),
            edges=torch.zeros(N_HISTOGRAM_BINS + 1, dtype=torch.float64),
            n_runs=zeros(d_sae),
            persisted=zeros(n_lags, d_sae),
            could_persist=zeros(n_lags, d_sae),
            fired_elsewhere=zeros(d_sae),
            could_elsewhere=zeros(d_sae),
        )

    def add(self, corpus: int, reading: BatchReading, firings: Firings) -> None:
        """Add a batch of one corpus.

        Args:
            corpus: number of the corpus.
            reading: the batch as the SAE reads it.
            firings: its firings.
        """
        d_sae = len(self.total)
        feature, value = firings.feature, firings.value.float()
        if not self.edges.any():
            largest = value.max().cpu().double() if len(value) else torch.tensor(1.0, dtype=torch.float64)
            self.edges = largest * torch.logspace(
                math.log10(_LOWEST), math.log10(_HIGHEST), len(self.edges), dtype=torch.float64
            )
        self.n_tokens[corpus] += int(reading.kept.sum())
        self.n_active[corpus] += torch.bincount(feature, minlength=d_sae).cpu()
        self.total.index_add_(0, feature.cpu(), value.cpu().double())
        self.maximum.scatter_reduce_(0, feature.cpu(), value.cpu(), "amax")
        bins = torch.bucketize(value, self.edges[1:-1].to(value))
        n_bins = self.histogram.shape[1]
        self.histogram += torch.bincount(feature * n_bins + bins, minlength=d_sae * n_bins).view(d_sae, n_bins).cpu()
        self._add_durations(reading, firings)

    def merge(self, other: FeatureCounts) -> None:
        """Add the counts of other contexts of the same corpora.

        Args:
            other: counts with the same edges of the histogram.
        """
        for name in (field.name for field in fields(self) if field.name not in ("edges", "maximum")):
            getattr(self, name).add_(getattr(other, name))
        self.maximum = torch.maximum(self.maximum, other.maximum)

    def _add_durations(self, reading: BatchReading, firings: Firings) -> None:
        n_positions, d_sae = reading.kept.shape[1], len(self.total)
        fires = (reading.feature_acts > 0).flatten()
        place = firings.row * d_sae + firings.feature
        # No feature is active at a masked position, and position 0 is masked, so the previous row is of the same text.
        starts = ~fires[place - d_sae]
        self.n_runs += torch.bincount(firings.feature[starts], minlength=d_sae).cpu()
        segments = (~reading.kept).long().cumsum(dim=1).flatten()
        for number, lag in enumerate(PERSISTENCE_LAGS):
            inside = firings.position + lag < n_positions
            inside &= segments[firings.row] == segments[(firings.row + lag).clamp(max=len(segments) - 1)]
            persists = fires[place[inside] + lag * d_sae]
            self.could_persist[number] += torch.bincount(firings.feature[inside], minlength=d_sae).cpu()
            self.persisted[number] += torch.bincount(firings.feature[inside][persists], minlength=d_sae).cpu()
        self._add_control(reading.kept, fires, firings)

    def _add_control(self, kept: Bool[Tensor, "batch pos"], fires: Bool[Tensor, " place"], firings: Firings) -> None:
        n_contexts, n_positions = kept.shape
        if n_contexts < 2:
            return
        d_sae, position = len(self.total), firings.position + 1
        elsewhere = (firings.context + 1) % n_contexts * n_positions + position
        counted = position < n_positions
        counted[counted.clone()] = kept.flatten()[elsewhere[counted]]
        feature = firings.feature[counted]
        also = fires[elsewhere[counted] * d_sae + feature]
        self.could_elsewhere += torch.bincount(feature, minlength=d_sae).cpu()
        self.fired_elsewhere += torch.bincount(feature[also], minlength=d_sae).cpu()

    @property
    def n_active_in_all(self) -> Int[Tensor, " d_sae"]:
        """Return the number of firings of each feature over all corpora."""
        return self.n_active.sum(dim=0)

    @property
    def never_fired(self) -> Bool[Tensor, " d_sae"]:
        """Return a mask of the features that never fired on this text."""
        return self.n_active_in_all == 0

    @property
    def density(self) -> Float[Tensor, "corpus d_sae"]:
        """Return the share of the counted tokens of each corpus on which each feature fires."""
        return self.n_active / self.n_tokens.clamp(min=1).unsqueeze(1)

    @property
    def selectivity(self) -> Float[Tensor, " d_sae"] | None:
        """Return `log2` of the density in the first corpus over the highest density in any other corpus; None if there is only one corpus.

        Half a count is added to each number of firings.
        """
        if len(self.n_tokens) < 2:
            return None
        density = (self.n_active + 0.5) / self.n_tokens.clamp(min=1).unsqueeze(1)
        return (density[0] / density[1:].max(dim=0).values).log2()
