"""Which features to edit, which random ones to compare them with, and which tell the forget text from all other text."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mtsae_lens.data.contexts import TokenTable
from mtsae_lens.splice.gates import RunningEvidenceGate
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.statistics import FiringStatistics

MAX_QUANTILE = 10_000_000  # torch.quantile takes 16 million values at most
MIN_RATE = 1e-5  # below one firing in 100,000 tokens a rate is noise; keeps log ratios finite


def rank_by_frequency(forget: FiringStatistics, retain: Sequence[FiringStatistics], *, min_ratio: float = 5.0) -> list[int]:
    """Features that fire at least `min_ratio` times as often on the forget text as on every retain text, most frequent first.

    After Farrell et al. 2024 (arXiv 2410.19278), with a ratio in place of their absolute threshold, which keeps features rare enough
    to do nothing.
    """
    highest = torch.stack([r.rate for r in retain]).amax(dim=0).clamp(min=MIN_RATE)
    eligible = (forget.rate >= min_ratio * highest) & (forget.rate > 0)
    order = torch.argsort(forget.rate, descending=True)
    return [int(feature) for feature in order if eligible[feature]]


def matched_random(
    forget: FiringStatistics, chosen: Sequence[int], generator: torch.Generator, *, n_nearest: int = 10
) -> tuple[int, ...]:
    """As many features that were not chosen, each matched to a chosen one in firing rate on the forget text.

    For each chosen feature, one of the `n_nearest` unused features whose log rate is nearest, at random: what such an edit does is
    owed to how much it edits, not to which features it edits.
    """
    log_rate = forget.rate.clamp(min=MIN_RATE).log()
    free = torch.ones_like(log_rate, dtype=torch.bool)
    free[list(chosen)] = False
    twins = []
    for feature in chosen:
        distance = (log_rate - log_rate[feature]).abs().masked_fill(~free, torch.inf)
        nearest = torch.topk(distance, min(n_nearest, int(free.sum())), largest=False).indices
        if len(nearest) == 0:
            break
        twin = int(nearest[torch.randint(len(nearest), (1,), generator=generator)])
        free[twin] = False
        twins.append(twin)
    return tuple(twins)


def calibrate_gate(
    lm: HookedLM,
    forget: FiringStatistics,
    retain: Sequence[FiringStatistics],
    retain_tables: Sequence[TokenTable],
    *,
    n_features: int = 100,
    decay: float = 0.97,
    false_positive_rate: float = 0.05,
) -> RunningEvidenceGate:
    """A causal gate that opens on the forget text, from SELECT text alone.

    It listens to the features whose firing rates differ most, in standard errors of a token, between the forget text and the retain text
    nearest to it in that feature; each weighs the log ratio of the two rates. The threshold is the highest, over the retain
    corpora, of the `1 - false_positive_rate` quantiles of the evidence.
    """
    rates = torch.stack([r.rate for r in retain])
    nearest = rates.gather(0, (rates - forget.rate).abs().argmin(dim=0, keepdim=True))[0].clamp(min=MIN_RATE)
    p, q = forget.rate.clamp(min=MIN_RATE), nearest
    standardized = (p - q).abs() / (p * (1 - p) + q * (1 - q)).clamp(min=MIN_RATE).sqrt()
    features = torch.topk(standardized, min(n_features, len(standardized))).indices
    weights = (p / q).log()[features]
    gate = RunningEvidenceGate(features, weights, decay, threshold=0.0)
    thresholds = []
    for table in retain_tables:
        evidence = []
        for tokens in lm.batches(table):
            evidence.append(gate.evidence(lm.feature_acts(tokens))[~lm.masked(tokens)])
        thresholds.append(torch.quantile(torch.cat(evidence)[:MAX_QUANTILE], 1 - false_positive_rate).item())
    return RunningEvidenceGate(features, weights, decay, threshold=max(thresholds))
