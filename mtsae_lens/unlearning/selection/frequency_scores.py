"""Score features by how often and how strongly they fire. These scores are cheap, but do not see what the features do.

Every retain corpus is spared: the corpus on which a feature fires most is the one that matters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mtsae_lens.unlearning.selection.evidence import SelectionEvidence
from mtsae_lens.unlearning.selection.ranking import frequency_ratio_scores

_EPSILON = 1e-21  # as in DSG: a feature that never fires on the retain text gets a very large ratio, not an infinite one


def keep_eligible(eligible: Bool[Tensor, " d_sae"], score: Float[Tensor, " d_sae"]) -> Float[Tensor, " d_sae"]:
    """Keep the score of eligible features, and set it to `-inf` for the others.

    Args:
        eligible: mask of the features that may be edited.
        score: one value per feature.
    """
    return score.masked_fill(~eligible, -torch.inf)


@dataclass(frozen=True)
class Frequency:
    """Firing rate on the forget corpus, for features that fire on less than a share `max_retain_rate` of every retain corpus.

    From Farrell et al. 2024 (arXiv 2410.19278), and SAEBench's unlearning evaluation, which uses the thresholds 0.01 and 0.001.
    """

    max_retain_rate: float = 0.01

    name = "frequency"

    def __call__(self, evidence: SelectionEvidence) -> Float[Tensor, " d_sae"]:
        """Return `rate_forget` where `rate_retain < max_retain_rate`.

        Args:
            evidence: SELECT text of the corpora.
        """
        rate = evidence.forget_statistics.rate
        return keep_eligible((evidence.highest_retain_rate < self.max_retain_rate) & (rate > 0), rate)


@dataclass(frozen=True)
class FrequencyRatio:
    """Firing rate on the forget corpus, for features that fire there at least `min_ratio` times as often as on every retain corpus.

    Unlike the absolute threshold of `Frequency`, the relative one keeps features that fire often enough to matter; see `rank_by_frequency`.
    """

    min_ratio: float = 5.0

    name = "frequency_ratio"

    def __call__(self, evidence: SelectionEvidence) -> Float[Tensor, " d_sae"]:
        """Return `rate_forget` where `rate_forget >= min_ratio * rate_retain`.

        Args:
            evidence: SELECT text of the corpora.
        """
        return frequency_ratio_scores(evidence.forget_statistics, evidence.retain_statistics, min_ratio=self.min_ratio)


@dataclass(frozen=True)
class SquaredMeanRatio:
    """Squared mean activation on the forget corpus, for features whose ratio to that of the retain corpora is among the highest.

    From DSG (Muhamed et al. 2025, arXiv 2504.08192), where the square of the mean activation over all tokens replaces the Fisher
    information. DSG has one retain corpus; here it is the one on which the feature is strongest.
    """

    ratio_percentile: float = 95.0

    name = "squared_mean_ratio"

    def __call__(self, evidence: SelectionEvidence) -> Float[Tensor, " d_sae"]:
        """Return `mean_forget^2` where `mean_forget^2 / mean_retain^2` is at or above its percentile over all features.

        Args:
            evidence: SELECT text of the corpora.
        """
        statistics = evidence.forget_statistics
        # on the CPU, because some devices lack float64
        forget, retain = (mean.cpu().double() ** 2 for mean in (statistics.mean, evidence.highest_retain_mean))
        ratio = forget / (retain + _EPSILON)
        threshold = torch.quantile(ratio, self.ratio_percentile / 100)
        eligible = (ratio >= threshold) & (forget > 0)
        return keep_eligible(eligible.to(statistics.rate.device), forget.to(statistics.rate))


@dataclass(frozen=True)
class FrequencyDifference:
    """Difference of firing rates, for features whose mean activation is at least `min_activation_ratio` times that on every retain corpus.

    From CRISP (Ashuach et al. 2025, arXiv 2508.13650), which compares sums over corpora of equal size; means allow any sizes.
    """

    min_activation_ratio: float = 3.0

    name = "frequency_difference"

    def __call__(self, evidence: SelectionEvidence) -> Float[Tensor, " d_sae"]:
        """Return `rate_forget - rate_retain` where `mean_forget >= min_activation_ratio * mean_retain`.

        Args:
            evidence: SELECT text of the corpora.
        """
        forget = evidence.forget_statistics
        eligible = (forget.mean >= self.min_activation_ratio * evidence.highest_retain_mean) & (forget.rate > 0)
        return keep_eligible(eligible, forget.rate - evidence.highest_retain_rate)
