"""Records of the planted experiment: what one SAE with one seed recovers of every planted feature, and the summaries over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import PlainSerializer

from mtsae_lens.data.planted import PlantedConfig
from mtsae_lens.records import Interval, Record

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


@dataclass(frozen=True)
class FeatureInterval(Interval):
    """A mean over the planted features of all seeds, with its 95% interval and the range of the seeds' means."""

    seed_low: float
    seed_high: float
    n: int
    """Number of features."""


@dataclass(frozen=True)
class Naming(Record):
    """How often a feature's time scale is identified correctly, and by how much it is missed."""

    accuracy: FeatureInterval
    octaves: FeatureInterval
    """Mean |log2(identified / true)|."""
    chance_accuracy: float
    chance_octaves: float
    """The same if one of the true scales is chosen at random."""


ByClass = dict[str, FeatureInterval]
"""A score by class of feature (`label_class`)."""


@dataclass(frozen=True, kw_only=True)
class ArchitectureComparison(Record):
    """What every architecture recovers of the same planted sequences."""

    chosen_on_tune: dict[str, dict[str, int | float]]
    """Sparsity setting of each architecture."""
    f1: dict[str, ByClass]
    """F1 on TEST by architecture."""
    correlation: dict[str, ByClass]
    oracle_f1: dict[str, ByClass]
    """F1 of the oracles on one position (`pointwise`) and on the positions that MTSAE reads (`context`)."""
    margins: dict[str, dict[str, FeatureInterval]]
    """F1 of MTSAE minus that of another architecture or of the oracle on one position, by kind of feature."""
    mcc: dict[str, tuple[float, ...]]
    """Mean cosine of matched directions, one per seed."""
    echo: dict[str, dict[str, FeatureInterval]]
    """F1 on patterns by magnitude of the echo."""
    naming: dict[str, Naming] | None = None
    """How well time scales are identified, by architecture, kind and statistic; absent for one seed."""


@dataclass(frozen=True, kw_only=True)
class DirectionArm(Record):
    """What one ablation recovers; sequences have one entry per seed."""

    f1: ByClass
    explained_variance: tuple[float, ...]
    separation: tuple[dict[str, float], ...]
    predictivity: tuple[dict[str, float | None], ...]
    dilations: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class PlantedResult(Record):
    """What `mtsae planted` measured."""

    planted: ArchitectureComparison
    directions: dict[str, DirectionArm] | None = None
    """The ablations by arm; absent if they were skipped."""
    planted_config: Annotated[PlantedConfig, PlainSerializer(asdict)]


def read_trial(content: Mapping[str, Any]) -> PlantedTrial:
    """Read a saved trial of an SAE from its JSON.

    Args:
        content: JSON of the trial.
    """
    return (TemporalTrial if "offsets" in content else PlantedTrial).from_json(content)


def read_arm(results: Mapping[str, Mapping[str, Any]], arm: str, n_seeds: int) -> list[PlantedTrial]:
    """Read the trials of one arm, seed by seed.

    Args:
        results: JSON of the trials, by name.
        arm: name of the arm.
        n_seeds: number of seeds.
    """
    return [read_trial(results[f"{arm}/seed_{seed}"]) for seed in range(n_seeds)]


def read_oracle(results: Mapping[str, Mapping[str, Any]], name: str, n_seeds: int) -> list[OracleTrial]:
    """Read the trials of the oracles, seed by seed.

    Args:
        results: JSON of the trials, by name.
        name: name of the oracle.
        n_seeds: number of seeds.
    """
    return [OracleTrial.from_json(results[f"{name}/seed_{seed}"]) for seed in range(n_seeds)]


def keep_temporal(records: Sequence[PlantedTrial]) -> list[TemporalTrial]:
    """Return the trials of SAEs with a temporal encoder.

    Args:
        records: trials.
    """
    return [record for record in records if isinstance(record, TemporalTrial)]
