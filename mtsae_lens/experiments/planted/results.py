"""Records of the planted trials: what one SAE with one seed recovers of every planted feature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mtsae_lens.records import Record

Values = tuple[float | None, ...]
"""One value for each planted feature; None where it is not finite."""

Score = Literal[
    "correlation", "f1", "onset_recall", "cosine", "run_length", "context_share", "context_lag", "pointwise", "context"
]
"""Name of a column of values."""


@dataclass(frozen=True, kw_only=True)
class PlantedRecord(Record):
    """Base of the records, with one entry per planted feature."""

    kind: tuple[str, ...]
    time_scale: tuple[int, ...]

    def column(self, score: Score) -> Values:
        """Return the values of one score.

        Args:
            score: name of the score.

        Raises:
            AttributeError: this kind of record has no such score.
        """
        values: Values = getattr(self, score)
        return values


@dataclass(frozen=True, kw_only=True)
class OracleTrial(PlantedRecord):
    """F1 of supervised linear probes (oracles) for every planted feature."""

    pointwise: Values
    """F1 of a probe on one position."""
    context: Values
    """F1 of a probe on the positions that the default MTSAE reads."""


@dataclass(frozen=True, kw_only=True)
class PlantedTrial(PlantedRecord):
    """The scores of one SAE; the columns have one value for each planted feature."""

    matched: tuple[int, ...]
    """Index of the SAE's feature that is matched to each planted feature."""
    correlation: Values
    f1: Values
    onset_recall: Values
    cosine: Values
    run_length: Values
    mcc: float
    explained_variance: float
    explained_variance_clean: float
    l0: float


@dataclass(frozen=True, kw_only=True)
class TemporalTrial(PlantedTrial):
    """The scores of one SAE with a temporal encoder."""

    offsets: tuple[int, ...]
    """The positions that the encoder reads, relative to the current one."""
    profile: tuple[Values, ...]
    """For each planted feature, the share of every offset in the lift of its match."""
    context_share: Values
    context_lag: Values
    named_lags: tuple[int, ...]
    """Index of the planted pair of lags that holds most of the profile."""
    dilations: tuple[float, ...]
    separation: dict[str, float]
    """Every separation loss after training, also those that were not used: 0 for separate scales, 1 for equal ones."""
    predictivity: dict[str, float | None]
    group: tuple[int, ...] | None = None
    """The group of each match in a nested SAE; None for other SAEs."""


def read_trial(content: Mapping[str, Any]) -> PlantedTrial:
    """Read a saved trial of an SAE from its JSON.

    Args:
        content: JSON of the trial.
    """
    return (TemporalTrial if "offsets" in content else PlantedTrial).from_json(content)
