"""List every way of choosing features by name. `register_score` adds one, which `mtsae unlearn` then knows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from mtsae_lens.errors import ConfigError, nearest
from mtsae_lens.unlearning.selection.effect_scores import Attribution, FisherAttribution, SingleEffect
from mtsae_lens.unlearning.selection.evidence import FeatureScore
from mtsae_lens.unlearning.selection.frequency_scores import Frequency, FrequencyDifference, FrequencyRatio, SquaredMeanRatio
from mtsae_lens.unlearning.selection.output_score import OutputScore

SCORES: dict[str, Callable[..., FeatureScore]] = {
    score.name: score
    for score in (
        Frequency,
        FrequencyRatio,
        SquaredMeanRatio,
        FrequencyDifference,
        Attribution,
        FisherAttribution,
        SingleEffect,
        OutputScore,
    )
}
"""Score classes by name; `FromScales` restricts any of them to time scales."""

ScoreClass = TypeVar("ScoreClass", bound=Callable[..., FeatureScore])


def register_score(score: ScoreClass) -> ScoreClass:
    """Register a class of scores under its `name`; use it as a decorator.

    The class is a frozen dataclass whose fields are the settings, as in `FeatureScore`.

    Args:
        score: the class.

    Returns:
        The same class.

    Raises:
        ConfigError: the class is not a dataclass, has no name, or has the name of another score.
    """
    name = getattr(score, "name", None)
    if not dataclasses.is_dataclass(score) or not isinstance(name, str):
        raise ConfigError(
            f"expected a dataclass with a class attribute name = '...', got {getattr(score, '__qualname__', score)!r}; add what is missing"
        )
    known = SCORES.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (score.__module__, score.__qualname__):
        raise ConfigError(
            f"expected a new name for a score, got {name!r}, which {known.__module__}.{known.__qualname__} has; choose another name"
        )
    SCORES[name] = score
    return score


def make_score(name: str, **settings: Any) -> FeatureScore:
    """Make a score by its name.

    Args:
        name: a name in `SCORES`.
        **settings: fields of the score.

    >>> make_score("frequency", max_retain_rate=0.001)
    Frequency(max_retain_rate=0.001)

    Raises:
        ConfigError: there is no such score, or it has no such setting.
    """
    if name not in SCORES:
        raise ConfigError(f"expected a known score, got {name!r}.{nearest(name, SCORES)}")
    known = [setting.name for setting in dataclasses.fields(SCORES[name])]  # type: ignore[arg-type]
    for setting in settings:
        if setting not in known:
            raise ConfigError(f"expected a setting of the score {name!r}, got {setting!r}.{nearest(setting, known)}")
    return SCORES[name](**settings)
