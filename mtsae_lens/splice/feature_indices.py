"""Indices of features, read from what users give and checked against an SAE."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from mtsae_lens.errors import ConfigError


def feature_indices(features: Any) -> tuple[int, ...]:
    """Read feature indices from a tuple, list, array or tensor of integers.

    Args:
        features: the indices.

    Raises:
        ConfigError: `features` is something else, such as a single number.
    """
    try:
        given: list[Any] = features.tolist() if hasattr(features, "tolist") else list(features)
        if any(isinstance(feature, bool) for feature in given):
            raise TypeError("a bool is not an index")
        return tuple(operator.index(feature) for feature in given)
    except TypeError as error:
        raise ConfigError(
            f"expected integer features in a tuple, list or tensor, got {features!r}; give such as (3, 14)"
        ) from error


def check_features(features: Sequence[int], d_sae: int) -> None:
    """Check that an SAE has the given features.

    Args:
        features: feature indices.
        d_sae: number of features of the SAE.

    Raises:
        ConfigError: an index is out of range.
    """
    unknown = [feature for feature in features if not 0 <= feature < d_sae]
    if unknown:
        shown = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        raise ConfigError(f"expected features from 0 to {d_sae - 1}, got {shown}; give indices of this SAE's features")
