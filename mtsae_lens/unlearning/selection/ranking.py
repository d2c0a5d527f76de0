"""Which features to edit, and which random ones to compare them with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mtsae_lens.errors import DataError
from mtsae_lens.unlearning.selection.statistics import FiringStatistics

MIN_RATE = 1e-5  # below one firing in 100,000 tokens a rate is noise; keeps log ratios finite


def ranking(score: Float[Tensor, " d_sae"]) -> tuple[int, ...]:
    """Rank all eligible features, the highest score first; equal ones by number.

    Raises:
        DataError: a score that is no number.
    """
    if bool(score.isnan().any()):
        raise DataError(f"{int(score.isnan().sum())} features have a score that is no number")
    order = torch.argsort(score, descending=True, stable=True)
    return tuple(order[: int((score > -torch.inf).sum())].tolist())


def select(score: Float[Tensor, " d_sae"], n_features: int) -> tuple[int, ...]:
    """Return the features with the highest scores.

    Raises:
        DataError: fewer are eligible; `ranking` gives all that are.
    """
    ranked = ranking(score)
    if len(ranked) < n_features:
        raise DataError(
            f"expected {n_features} eligible features, got {len(ranked)} of {len(score)}; choose fewer, loosen the score's thresholds, or "
            "train a wider SAE"
        )
    return ranked[:n_features]


def frequency_ratio_scores(
    forget: FiringStatistics, retain: Sequence[FiringStatistics], *, min_ratio: float
) -> Float[Tensor, " d_sae"]:
    """Return the firing rate on the forget text; `-inf` if it is less than `min_ratio` times that on some retain text."""
    highest = torch.stack([r.rate for r in retain]).amax(dim=0).clamp(min=MIN_RATE)
    eligible = (forget.rate >= min_ratio * highest) & (forget.rate > 0)
    return forget.rate.masked_fill(~eligible, -torch.inf)


def rank_by_frequency(forget: FiringStatistics, retain: Sequence[FiringStatistics], *, min_ratio: float = 5.0) -> list[int]:
    """Rank the features that fire at least `min_ratio` times as often on the forget text as on every retain text, most frequent first.

    After Farrell et al. 2024 (arXiv 2410.19278), with a ratio in place of their absolute threshold, which keeps features rare enough
    to do nothing.
    """
    score = frequency_ratio_scores(forget, retain, min_ratio=min_ratio)
    order = torch.argsort(forget.rate, descending=True)  # not stable: equal rates keep the order that recorded results have
    return [int(feature) for feature in order if score[feature] > -torch.inf]


def matched_random(
    forget: FiringStatistics, chosen: Sequence[int], generator: torch.Generator, *, n_nearest: int = 10
) -> tuple[int, ...]:
    """Draw as many features that were not chosen, each matched to a chosen one: it fires as often on the forget text, and as strongly.

    For each chosen feature, one at random of the `n_nearest` unused features nearest to it in log firing rate and log mean activation,
    each in units of its standard deviation over features: what such an edit does is owed to how much it edits, not to which features.
    """
    places = _standardized_places(forget)
    free = torch.ones(len(places), dtype=torch.bool, device=places.device)
    free[list(chosen)] = False
    twins = []
    for feature in chosen:
        distance = (places - places[feature]).norm(dim=1).masked_fill(~free, torch.inf)
        nearest = torch.topk(distance, min(n_nearest, int(free.sum())), largest=False).indices
        if len(nearest) == 0:
            break
        twin = int(nearest[torch.randint(len(nearest), (1,), generator=generator)])
        free[twin] = False
        twins.append(twin)
    return tuple(twins)


def _standardized_places(forget: FiringStatistics) -> Float[Tensor, "d_sae 2"]:
    """Return log firing rate and log mean activation, each divided by its deviation over the features that fire."""
    fires = forget.rate > 0
    weakest = forget.mean_activation[fires].min() if bool(fires.any()) else 1.0
    logs = torch.stack([forget.rate.clamp(min=MIN_RATE).log(), forget.mean_activation.clamp(min=weakest).log()], dim=1)
    return logs / logs[fires].std(dim=0, correction=0).clamp(min=1e-6)
