"""Indices of features, read from what users give and checked against an SAE."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from mtsae_lens.errors import ConfigError


def feature_indices(features: Any) -> tuple[int, ...]:
    """Read indices from a tuple, list, array or tensor of integers.

    Raises:
        ConfigError: something else, such as a single number.
    """
    try:
        given: list[Any] = features.tolist() if hasattr(features, "tolist") else list(features)
        if any(isinstance(feature, bool) for feature in given):
            raise TypeError("a truth value is no index")
        return tuple(operator.index(feature) for feature in given)
    except TypeError as error:
        raise ConfigError(
            f"features must be whole numbers in a tuple, list or tensor, such as (3, 14); got {features!r}"
        ) from error


def check_features(features: Sequence[int], d_sae: int) -> None:
    """Raise `ConfigError` for a feature that the SAE does not have."""
    if any(not 0 <= feature < d_sae for feature in features):
        raise ConfigError(f"features must lie between 0 and {d_sae - 1}; got {min(features)} to {max(features)}")
