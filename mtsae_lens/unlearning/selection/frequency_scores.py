"""Scores that read how often and how strongly features fire: cheap, and blind to what the features do.

With several retain corpora each is spared: what counts is the corpus on which a feature fires most.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mtsae_lens.unlearning.selection.evidence import SelectionEvidence
from mtsae_lens.unlearning.selection.ranking import frequency_ratio_scores

_EPSILON = 1e-21  # theirs: a feature silent on the retain text has a huge ratio, not an infinite one


def only(eligible: Bool[Tensor, " d_sae"], score: Float[Tensor, " d_sae"]) -> Float[Tensor, " d_sae"]:
    """Keep the score where a feature may be edited, `-inf` elsewhere."""
    return score.masked_fill(~eligible, -torch.inf)


@dataclass(frozen=True)
class Frequency:
    """Firing rate on the forget corpus, of features that fire on less than a share `max_retain_rate` of every retain corpus.

    Farrell et al. 2024 (arXiv 2410.19278); SAEBench's unlearning evaluation, thresholds 0.01 and 0.001.
    """

    max_retain_rate: float = 0.01

    name = "frequency"

    def __call__(self, evidence: SelectionEvidence) -> Float[Tensor, " d_sae"]:
        """Return `rate_forget` where `rate_retain < max_retain_rate`."""
        rate = evidence.forget_statistics.rate
        return only((evidence.highest_retain_rate < self.max_retain_rate) & (rate > 0), rate)


@dataclass(frozen=True)
class FrequencyRatio:
    """Firing rate on the forget corpus, of features that fire there `min_ratio` times as often as on every retain corpus.

    The threshold of `Frequency` made relative, so that features frequent enough to matter remain; see `rank_by_frequency`.
    """

    min_ratio: float = 5.0

    name = "frequency_ratio"

    def __call__(self, evidence: SelectionEvidence) -> Float[Tensor, " d_sae"]:
        """Return `rate_forget` where `rate_forget >= min_ratio * rate_retain`."""
        return frequency_ratio_scores(evidence.forget_statistics, evidence.retain_statistics, min_ratio=self.min_ratio)


@dataclass(frozen=True)
class SquaredMeanRatio:
    """Squared mean activation on the forget corpus, of features whose ratio to the retain corpora's is among the highest.

    DSG (Muhamed et al. 2025, arXiv 2504.08192): the square of the mean activation over all tokens stands for the Fisher information.
    Theirs is one retain corpus; here it is the one on which the feature is strongest.
    """

    ratio_percentile: float = 95.0

    name = "squared_mean_ratio"

    def __call__(self, evidence: SelectionEvidence) -> Float[Tensor, " d_sae"]:
        """Return `mean_forget^2` where `mean_forget^2 / mean_retain^2` is at or above its percentile over all features."""
        statistics = evidence.forget_statistics
        # on the CPU, as not every device has float64
        forget, retain = (mean.cpu().double() ** 2 for mean in (statistics.mean, evidence.highest_retain_mean))
        ratio = forget / (retain + _EPSILON)
        threshold = torch.quantile(ratio, self.ratio_percentile / 100)
        eligible = (ratio >= threshold) & (forget > 0)
        return only(eligible.to(statistics.rate.device), forget.to(statistics.rate))


@dataclass(frozen=True)
class FrequencyDifference:
    """Difference of firing rates, of features whose mean activation is `min_activation_ratio` times that on every retain corpus.

    CRISP (Ashuach et al. 2025, arXiv 2508.13650). They compare sums over corpora of one size; means allow any sizes.
    """

    min_activation_ratio: float = 3.0

    name = "frequency_difference"

    def __call__(self, evidence: SelectionEvidence) -> Float[Tensor, " d_sae"]:
        """Return `rate_forget - rate_retain` where `mean_forget >= min_activation_ratio * mean_retain`."""
        forget = evidence.forget_statistics
        eligible = (forget.mean >= self.min_activation_ratio * evidence.highest_retain_mean) & (forget.rate > 0)
        return only(eligible, forget.rate - evidence.highest_retain_rate)
