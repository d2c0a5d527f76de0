"""Rank features, select the ones to edit, and draw matched random features to compare them with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mtsae_lens.errors import DataError
from mtsae_lens.unlearning.selection.statistics import FiringStatistics

MIN_RATE = 1e-5  # below one firing in 100,000 tokens a rate is noise; keeps log ratios finite


def ranking(score: Float[Tensor, " d_sae"]) -> tuple[int, ...]:
    """Rank all eligible features by score, highest first; equal scores are ordered by index.

    Args:
        score: one value per feature; `-inf` if it must not be edited.

    Returns:
        Indices of the eligible features.

    Raises:
        DataError: a score is NaN.
    """
    if bool(score.isnan().any()):
        raise DataError(
            f"expected a number for each feature, got a NaN score for {int(score.isnan().sum())} features; mend the score or the SAE"
        )
    order = torch.argsort(score, descending=True, stable=True)
    return tuple(order[: int((score > -torch.inf).sum())].tolist())


def select(score: Float[Tensor, " d_sae"], n_features: int) -> tuple[int, ...]:
    """Return the features with the highest scores.

    Args:
        score: one value per feature; `-inf` if it must not be edited.
        n_features: number of features.

    Returns:
        Indices of the features, the best first.

    Raises:
        DataError: fewer features are eligible; `ranking` returns all that are.
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
    """Compute the firing rate on the forget text, or `-inf` if it is less than `min_ratio` times that on some retain text.

    Args:
        forget: firing statistics of the forget text.
        retain: firing statistics of each retain text.
        min_ratio: smallest ratio of the firing rates.

    Returns:
        One score per feature.
    """
    highest = torch.stack([r.rate for r in retain]).amax(dim=0).clamp(min=MIN_RATE)
    eligible = (forget.rate >= min_ratio * highest) & (forget.rate > 0)
    return forget.rate.masked_fill(~eligible, -torch.inf)


def rank_by_frequency(forget: FiringStatistics, retain: Sequence[FiringStatistics], *, min_ratio: float = 5.0) -> list[int]:
    """Rank the features that fire at least `min_ratio` times as often on the forget text as on every retain text, most frequent first.

    After Farrell et al. 2024 (arXiv 2410.19278), with a ratio in place of their absolute threshold, which only keeps features that are
    too rare to have an effect.

    Args:
        forget: firing statistics of the forget text.
        retain: firing statistics of each retain text.
        min_ratio: smallest ratio of the firing rates.
    """
    score = frequency_ratio_scores(forget, retain, min_ratio=min_ratio)
    order = torch.argsort(
        forget.rate, descending=True
    )  # deliberately not stable, so that equal rates have the order of recorded results
    return [int(feature) for feature in order if score[feature] > -torch.inf]


def matched_random(
    forget: FiringStatistics, chosen: Sequence[int], generator: torch.Generator, *, n_nearest: int = 10
) -> tuple[int, ...]:
    """Draw one feature that was not chosen for each chosen one, such that it fires about as often and as strongly on the forget text.

    It is drawn from the `n_nearest` unused features that are nearest in log firing rate and log mean activation, each in units of its
    standard deviation over features. An edit of these features shows how much of an effect is due to the size of the edit and not to
    the choice of features.

    Args:
        forget: firing statistics of the forget text.
        chosen: indices of the chosen features.
        generator: source of randomness.
        n_nearest: number of nearest features to draw from.

    Returns:
        Indices of the drawn features; fewer than chosen if there are not enough features.
    """
    places = _standardized_places(forget)
    free = torch.ones(len(places), dtype=torch.bool, device=places.device)
    free[list(chosen)] = False
    matches = []
    for feature in chosen:
        distance = (places - places[feature]).norm(dim=1).masked_fill(~free, torch.inf)
        nearest = torch.topk(distance, min(n_nearest, int(free.sum())), largest=False).indices
        if len(nearest) == 0:
            break
        match = int(nearest[torch.randint(len(nearest), (1,), generator=generator)])
        free[match] = False
        matches.append(match)
    return tuple(matches)


def _standardized_places(forget: FiringStatistics) -> Float[Tensor, "d_sae 2"]:
    """Return log firing rate and log mean activation, each divided by its standard deviation over the features that fire."""
    fires = forget.rate > 0
    weakest = forget.mean_activation[fires].min() if bool(fires.any()) else 1.0
    logs = torch.stack([forget.rate.clamp(min=MIN_RATE).log(), forget.mean_activation.clamp(min=weakest).log()], dim=1)
    return logs / logs[fires].std(dim=0, correction=0).clamp(min=1e-6)
