"""Compare architectures on planted sequences: train them, measure them, and summarize over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

from mtsae_lens.experiments.parts import as_json
from mtsae_lens.experiments.planted.arms import (
    ECHOES,
    N_SIDE_SEEDS,
    OURS,
    SPARSITY,
    TUNE_SEED,
    build_echo_arms,
    build_sparsity_arms,
)
from mtsae_lens.experiments.planted.measures import make_trials, measure_oracle, record_settings
from mtsae_lens.experiments.planted.results import (
    ArchitectureComparison,
    FeatureInterval,
    Naming,
    OracleTrial,
    PlantedRecord,
    PlantedTrial,
    Score,
    TemporalTrial,
    keep_temporal,
    read_arm,
    read_oracle,
    read_trial,
)
from mtsae_lens.experiments.planted.scores import (
    best_setting,
    estimate_by_class,
    estimate_class,
    estimate_margin,
    name_by_lags,
    name_by_statistic,
)
from mtsae_lens.experiments.planted.training import PlantedArm, PlantedSettings
from mtsae_lens.trials import run_trials

STATISTICS: tuple[Score, ...] = ("run_length", "context_share", "context_lag")
"""Scores from which the length of a persistent feature is identified; the first exists for every SAE."""


@dataclass(frozen=True, eq=False)
class ComparedTrials:
    """The trials of the comparison, one per seed each."""

    settings: PlantedSettings
    chosen: Mapping[str, PlantedArm]
    """The arm of each architecture, with the sparsity that was chosen on TUNE."""
    by_architecture: Mapping[str, Sequence[PlantedTrial]]
    oracle: Sequence[OracleTrial]
    echoes: Mapping[str, Sequence[PlantedRecord]]
    """Trials with other magnitudes of the echo, by `NAME/echo_MAGNITUDE`."""

    @property
    def ours(self) -> list[TemporalTrial]:
        """Return the trials of MTSAE."""
        return keep_temporal(self.by_architecture[OURS])

    @property
    def n_seeds(self) -> int:
        """Return the number of seeds."""
        return len(self.oracle)


def compare_architectures(settings: PlantedSettings, n_seeds: int, out: Path, n_workers: int) -> ComparedTrials:
    """Train every architecture, with sparsity chosen on TUNE, on the same planted sequences, and measure what each recovers.

    Args:
        settings: settings that all arms share.
        n_seeds: number of seeds.
        out: folder of the trials.
        n_workers: number of processes.
    """
    chosen = _choose_sparsity(settings, out / "tune", n_workers)
    echo_arms, echo_seeds = build_echo_arms(chosen), min(n_seeds, N_SIDE_SEEDS)
    trials = make_trials(chosen, settings, range(n_seeds)) | make_trials(echo_arms, settings, range(echo_seeds))
    for seed in range(n_seeds):
        trials[f"oracle/seed_{seed}"] = as_json(partial(measure_oracle, settings, {}, seed))
    for echo, seed in product(ECHOES, range(echo_seeds)):
        planted = {"echo_magnitude": echo}
        trials[f"oracle/echo_{echo:g}/seed_{seed}"] = as_json(partial(measure_oracle, settings, planted, seed))
    record = record_settings({**chosen, **echo_arms}, settings)
    found = run_trials(out / "trials", record, trials, "Planted time", n_workers=n_workers)
    echoes: dict[str, Sequence[PlantedRecord]] = {name: read_arm(found, name, echo_seeds) for name in echo_arms}
    echoes |= {f"oracle/echo_{echo:g}": read_oracle(found, f"oracle/echo_{echo:g}", echo_seeds) for echo in ECHOES}
    by_architecture = {name: read_arm(found, name, n_seeds) for name in chosen}
    return ComparedTrials(settings, chosen, by_architecture, read_oracle(found, "oracle", n_seeds), echoes)


def _choose_sparsity(settings: PlantedSettings, folder: Path, n_workers: int) -> dict[str, PlantedArm]:
    """Return the arm of each architecture with the highest mean F1 on the dictionary of TUNE."""
    candidates = build_sparsity_arms(SPARSITY)
    tuning = run_trials(
        folder,
        record_settings(candidates, settings),
        make_trials(candidates, settings, [TUNE_SEED]),
        "Planted time, sparsity on TUNE",
        n_workers=n_workers,
    )
    tuned = {name: read_trial(content) for name, content in tuning.items()}
    best = {name: best_setting(tuned, [trial for trial in tuned if trial.startswith(f"{name}/")]) for name in SPARSITY}
    return {name: candidates[trial.rpartition("/")[0]] for name, trial in best.items()}


def summarize_comparison(trials: ComparedTrials) -> ArchitectureComparison:
    """Summarize the trials over seeds.

    Args:
        trials: the trials of the comparison.
    """
    records, oracle = trials.by_architecture, trials.oracle
    return ArchitectureComparison(
        chosen_on_tune={name: dict(arm.sae) for name, arm in trials.chosen.items()},
        f1={name: estimate_by_class(own, "f1") for name, own in records.items()},
        correlation={name: estimate_by_class(own, "correlation") for name, own in records.items()},
        oracle_f1={"pointwise": estimate_by_class(oracle, "pointwise"), "context": estimate_by_class(oracle, "context")},
        margins=_compute_margins(records, oracle),
        mcc={name: tuple(record.mcc for record in own) for name, own in records.items()},
        echo={
            name: {f"{echo:g}": estimate_class(trials.echoes[f"{name}/echo_{echo:g}"], "f1", "pattern") for echo in ECHOES}
            for name in (OURS, "topk")
        },
        naming=_name_scales(trials) if trials.n_seeds > 1 else None,
    )


def _compute_margins(
    records: Mapping[str, Sequence[PlantedTrial]], oracle: Sequence[OracleTrial]
) -> dict[str, dict[str, FeatureInterval]]:
    """Return by how much the F1 of MTSAE exceeds that of each other SAE and of the oracle on one position, by kind of feature."""
    ours = records[OURS]
    kinds = list(dict.fromkeys(oracle[0].kind))
    against = {
        name: {kind: estimate_margin(ours, own, kind) for kind in kinds} for name, own in records.items() if name != OURS
    }
    against["oracle, one position"] = {kind: estimate_margin(ours, oracle, kind, their_score="pointwise") for kind in kinds}
    return against


def _name_scales(trials: ComparedTrials) -> dict[str, Naming]:
    records = trials.by_architecture
    namings = {
        f"{name}: persistent, by {statistic}": name_by_statistic(own, statistic, "persistent")
        for name, own in records.items()
        for statistic in STATISTICS
        if statistic == "run_length" or keep_temporal(own)
    }
    namings[f"{OURS}: pattern, by lags"] = name_by_lags(trials.ours, trials.settings.planted.lags)
    for name, own in records.items():
        namings[f"{name}: pattern, by run_length"] = name_by_statistic(own, "run_length", "pattern")
    return namings
