"""Train and measure an ablation for each of the three directions that the paper left open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mtsae_lens.experiments.parts import as_json
from mtsae_lens.experiments.planted.arms import FAR_LAGS, build_direction_arms
from mtsae_lens.experiments.planted.measures import make_trials, measure_oracle, record_settings
from mtsae_lens.experiments.planted.results import (
    DirectionArm,
    OracleTrial,
    TemporalTrial,
    keep_temporal,
    read_arm,
    read_oracle,
)
from mtsae_lens.experiments.planted.scores import estimate_by_class
from mtsae_lens.experiments.planted.training import PlantedArm, PlantedSettings
from mtsae_lens.trials import run_trials


@dataclass(frozen=True, eq=False)
class DirectionTrials:
    """The trials of the ablations."""

    directions: Mapping[str, Mapping[str, PlantedArm]]
    """The arms of each direction; the first is the plain version."""
    by_arm: Mapping[str, Sequence[TemporalTrial]]
    """One trial per seed, by arm."""
    oracle: Sequence[OracleTrial]
    """The oracles on sequences with far lags, one per seed."""


def ablate_directions(settings: PlantedSettings, ours: PlantedArm, n_seeds: int, out: Path, n_workers: int) -> DirectionTrials:
    """Train and measure the ablations of each of the paper's open directions on planted sequences.

    Args:
        settings: settings that all arms share.
        ours: the arm of MTSAE.
        n_seeds: number of seeds.
        out: folder of the trials.
        n_workers: number of processes.
    """
    directions = build_direction_arms(ours)
    arms = {label: arm for group in directions.values() for label, arm in group.items()}
    trials = make_trials(arms, settings, range(n_seeds))
    for seed in range(n_seeds):
        trials[f"oracle far/seed_{seed}"] = as_json(partial(measure_oracle, settings, FAR_LAGS, seed))
    found = run_trials(out / "trials", record_settings(arms, settings), trials, "Directions", n_workers=n_workers)
    by_arm = {label: keep_temporal(read_arm(found, label, n_seeds)) for label in arms}
    return DirectionTrials(directions, by_arm, read_oracle(found, "oracle far", n_seeds))


def summarize_directions(trials: DirectionTrials) -> dict[str, DirectionArm]:
    """Summarize the trials over seeds, by arm.

    Args:
        trials: the trials of the ablations.
    """
    return {
        label: DirectionArm(
            f1=estimate_by_class(own, "f1"),
            explained_variance=tuple(record.explained_variance for record in own),
            separation=tuple(record.separation for record in own),
            predictivity=tuple(record.predictivity for record in own),
            dilations=tuple(record.dilations for record in own),
        )
        for label, own in trials.by_arm.items()
    }
