"""Report the comparison of architectures on planted sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from mtsae_lens.experiments.parts import Part, as_json
from mtsae_lens.experiments.planted.arms import (
    ECHOES,
    N_SIDE_SEEDS,
    OURS,
    SPARSITY,
    echo_arms,
    sparsity_arms,
)
from mtsae_lens.experiments.planted.results import (
    OracleTrial,
    PlantedRecord,
    PlantedTrial,
    Score,
    TemporalTrial,
    read_trial,
)
from mtsae_lens.experiments.planted.scores import (
    FeatureInterval,
    Naming,
    best_setting,
    class_estimate,
    classes,
    margin,
    mean_profile,
    name_by_lags,
    name_by_statistic,
)
from mtsae_lens.experiments.planted.trials import (
    TUNE_SEED,
    PlantedArm,
    PlantedSettings,
    oracle_trial,
    settings_record,
    trials,
)
from mtsae_lens.reporting.page import Section, Table
from mtsae_lens.reporting.planted_figures import profile_heatmap, recovery_bars, strength_curves
from mtsae_lens.trials import run_trials

_STATISTICS: dict[Score, str] = {
    "run_length": "length of its runs",
    "context_share": "share of context in its profile",
    "context_lag": "mean lag of its profile",
}


def class_label(kind: str, time_scale: int) -> str:
    """Return the name of a class, such as `persistent 16`, `cue` or `pattern -8`.

    Args:
        kind: kind of the features.
        time_scale: time scale of the features, in positions.
    """
    return {"persistent": f"persistent {time_scale}", "cue": "cue", "pattern": f"pattern -{time_scale}"}[kind]


def planted_part(settings: PlantedSettings, n_seeds: int, out: Path, n_workers: int) -> tuple[Part, dict[str, PlantedArm]]:
    """Train every architecture, with sparsity chosen on TUNE, on the same planted sequences, and score recovery and identification of
    time scales.

    Args:
        settings: settings that all arms share.
        n_seeds: number of seeds.
        out: folder of the trials.
        n_workers: number of processes.

    Returns:
        The part, and the arm of each architecture with the chosen sparsity.
    """
    candidates = sparsity_arms(SPARSITY)
    tuning = run_trials(
        out / "tune",
        settings_record(candidates, settings),
        trials(candidates, settings, [TUNE_SEED]),
        "Planted time, sparsity on TUNE",
        n_workers=n_workers,
    )
    tuned = {name: read_trial(content) for name, content in tuning.items()}
    best = {
        name: best_setting(tuned, [trial for trial in tuned if trial.startswith(f"{name}/")]).rpartition("/")[0]
        for name in SPARSITY
    }
    chosen = {name: candidates[best[name]] for name in SPARSITY}
    side_arms, side_seeds = echo_arms(chosen), min(n_seeds, N_SIDE_SEEDS)
    jobs = trials(chosen, settings, range(n_seeds)) | trials(side_arms, settings, range(side_seeds))
    for seed in range(n_seeds):
        jobs[f"oracle/seed_{seed}"] = as_json(partial(oracle_trial, settings, {}, seed))
    for echo, seed in product(ECHOES, range(side_seeds)):
        jobs[f"oracle/echo_{echo:g}/seed_{seed}"] = as_json(partial(oracle_trial, settings, {"echo_magnitude": echo}, seed))
    record = settings_record(chosen | side_arms, settings)
    results = run_trials(out / "trials", record, jobs, "Planted time", n_workers=n_workers)
    by_architecture = {name: read_arm(results, name, n_seeds) for name in chosen}
    ours = temporal(by_architecture[OURS])
    oracle = read_oracle(results, "oracle", n_seeds)
    side: dict[str, Sequence[PlantedRecord]] = {name: read_arm(results, name, side_seeds) for name in side_arms}
    side |= {f"oracle/echo_{e:g}": read_oracle(results, f"oracle/echo_{e:g}", side_seeds) for e in ECHOES}
    margins = _margins(by_architecture, oracle)
    sections = [
        _recovery_section(by_architecture, oracle, settings, chosen, n_seeds),
        _margin_section(margins),
        _strength_section({**by_architecture, "oracle": oracle, **side}, settings),
    ]
    namings = _namings(by_architecture, ours, settings) if n_seeds > 1 else {}
    if namings:
        sections.append(_naming_section(namings))
    sections.append(_profile_section(ours))
    metrics = {
        "chosen_on_tune": {name: dict(arm.sae) for name, arm in chosen.items()},
        "f1": {name: by_class(own, "f1") for name, own in by_architecture.items()},
        "correlation": {name: by_class(own, "correlation") for name, own in by_architecture.items()},
        "oracle_f1": {"pointwise": by_class(oracle, "pointwise"), "context": by_class(oracle, "context")},
        "margins": {name: {kind: found.to_json() for kind, found in row.items()} for name, row in margins.items()},
        "mcc": {name: [record.mcc for record in own] for name, own in by_architecture.items()},
        "echo": {
            name: {f"{echo:g}": class_estimate(side[f"{name}/echo_{echo:g}"], "f1", "pattern").to_json() for echo in ECHOES}
            for name in (OURS, "topk")
        },
    }
    if namings:
        metrics["naming"] = {key: naming.to_json() for key, naming in namings.items()}
    tables = [table for section in sections[:2] if (table := section.table)]
    return Part("planted", metrics, sections, tables), chosen


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


def temporal(records: Sequence[PlantedTrial]) -> list[TemporalTrial]:
    """Return the trials of SAEs with a temporal encoder.

    Args:
        records: trials.
    """
    return [record for record in records if isinstance(record, TemporalTrial)]


def by_class(records: Sequence[PlantedRecord], score: Score) -> dict[str, dict[str, Any]]:
    """Return a score by class of feature, for `metrics.json`.

    Args:
        records: one record per seed.
        score: name of the score.
    """
    return {class_label(*of): class_estimate(records, score, *of).to_json() for of in classes(records[0])}


def _recovery_section(
    records: Mapping[str, Sequence[PlantedTrial]],
    oracle: Sequence[OracleTrial],
    settings: PlantedSettings,
    chosen: Mapping[str, PlantedArm],
    n_seeds: int,
) -> Section:
    every = classes(oracle[0])
    scores = {name: {class_label(*of): class_estimate(own, "f1", *of) for of in every} for name, own in records.items()}
    reads: dict[str, Score] = {
        "supervised linear probe on one position (oracle)": "pointwise",
        "supervised linear probe on the positions MTSAE reads (oracle)": "context",
    }
    references = {
        title: {class_label(*of): class_estimate(oracle, read, *of).mean for of in every} for title, read in reads.items()
    }
    table = Table(
        ["class of feature", *records, "oracle, one position", "oracle, context"],
        [
            [
                label,
                *(f"{scores[name][label]:.3f}" for name in records),
                *(round(values[label], 3) for values in references.values()),
            ]
            for label in (class_label(*of) for of in every)
        ]
        + [
            ["mcc (directions)", *(f"{sum(r.mcc for r in own) / len(own):.3f}" for own in records.values()), None, None],
            ["L0", *(f"{sum(r.l0 for r in own) / len(own):.1f}" for own in records.values()), None, None],
        ],
    )
    planted = settings.planted
    sparsity = ", ".join(f"{name} {key} {value:g}" for name, arm in chosen.items() for key, value in arm.sae.items())
    text = (
        f"{len(oracle[0].kind)} planted features in {planted.d_in} dimensions, {n_seeds} dictionaries, {settings.n_training_tokens:,} training "
        f"positions, {settings.d_sae} features per SAE. The table gives F1 of detecting a planted feature on TEST sequences (1 is perfect). "
        "Features are matched to planted ones, and thresholds are set, on SELECT. The sparsity of each architecture was chosen on a "
        f"separate dictionary ({sparsity}). Intervals are 95%, over planted features. The number after persistent is the mean length of the "
        f"runs in which the feature fires. A pattern is an echo of magnitude {planted.echo_magnitude:g} after two cues; its number is how "
        "far back the farther cue is."
    )
    return Section(
        "Planted time scales: who recovers what?", text, table=table, figure=recovery_bars(scores, references, "F1 on TEST")
    )


def _margins(
    records: Mapping[str, Sequence[PlantedTrial]], oracle: Sequence[OracleTrial]
) -> dict[str, dict[str, FeatureInterval]]:
    """Return by how much the F1 of MTSAE exceeds that of each other SAE and of the oracle on one position, by kind of feature."""
    ours = records[OURS]
    kinds = list(dict.fromkeys(oracle[0].kind))
    against = {name: {kind: margin(ours, own, kind) for kind in kinds} for name, own in records.items() if name != OURS}
    against["oracle, one position"] = {kind: margin(ours, oracle, kind, their_score="pointwise") for kind in kinds}
    return against


def _margin_section(margins: Mapping[str, Mapping[str, FeatureInterval]]) -> Section:
    first = next(iter(margins.values()))
    table = Table(
        ["MTSAE minus", *(f"{kind} [95%] (seeds)" for kind in first)],
        [
            [name, *(f"{found} ({found.seed_low:+.3f} to {found.seed_high:+.3f})" for found in row.values())]
            for name, row in margins.items()
        ],
    )
    n = ", ".join(f"{found.n} {kind} features" for kind, found in first.items())
    text = (
        f"F1 of MTSAE minus F1 of the other, paired by planted feature (n = {n}). Above 0, MTSAE is better. In parentheses: the range "
        "over seeds."
    )
    return Section("By how much?", text, table=table)


def _strength_section(records: Mapping[str, Sequence[PlantedRecord]], settings: PlantedSettings) -> Section:
    strengths = sorted([*ECHOES, settings.planted.echo_magnitude])

    def curve(name: str, score: Score) -> dict[float, FeatureInterval]:
        own = settings.planted.echo_magnitude
        return {
            echo: class_estimate(records[name if echo == own else f"{name}/echo_{echo:g}"], score, "pattern")
            for echo in strengths
        }

    curves = {
        "MTSAE": curve(OURS, "f1"),
        "TopK": curve("topk", "f1"),
        "oracle, one position": curve("oracle", "pointwise"),
        "oracle, context": curve("oracle", "context"),
    }
    text = (
        "F1 on patterns (higher is better), by the magnitude of their echo. Training rewards reconstruction, to which a faint echo adds "
        "little."
    )
    return Section("How faint may a pattern be?", text, figure=strength_curves(curves, "F1 on TEST"))


def _namings(
    records: Mapping[str, Sequence[PlantedTrial]], ours: Sequence[TemporalTrial], settings: PlantedSettings
) -> dict[str, Naming]:
    namings = {
        f"{name}: persistent, by {statistic}": name_by_statistic(own, statistic, "persistent")
        for name, own in records.items()
        for statistic in _STATISTICS
        if statistic == "run_length" or temporal(own)
    }
    namings[f"{OURS}: pattern, by lags"] = name_by_lags(ours, settings.planted.lags)
    for name, own in records.items():
        namings[f"{name}: pattern, by run_length"] = name_by_statistic(own, "run_length", "pattern")
    return namings


def _naming_section(namings: Mapping[str, Naming]) -> Section:
    by: dict[str, str] = {
        "lags": "two lags with the largest share of its profile",
        **{str(name): words for name, words in _STATISTICS.items()},
    }
    rows = []
    for key, naming in namings.items():
        name, _, rest = key.partition(": ")
        kind, _, statistic = rest.partition(", by ")
        rows.append([
            f"{kind}, by the {by[statistic]}",
            name,
            f"{naming.accuracy:.3f}",
            f"{naming.chance_accuracy:.2f}",
            f"{naming.octaves:.3f}",
            f"{naming.chance_octaves:.2f}",
        ])  # fmt: skip
    table = Table(["what is identified, and how", "SAE", "identified correctly", "chance", "octaves off", "chance "], rows)
    text = (
        "Patterns: the pair of lags with the largest share of the matched feature's temporal profile, without calibration. Persistent "
        "features: the mean length of runs, from a statistic of the matched feature that is calibrated on the other dictionaries. The "
        "length of runs can be measured for any SAE, but only a temporal encoder has a profile. Identified correctly: share of features "
        "(higher is better). Octaves off: mean error of log2 of the length (lower is better)."
    )
    return Section("Is the time scale identified correctly?", text, table=table)


def _profile_section(records: Sequence[TemporalTrial]) -> Section:
    profiles = {class_label(*of): mean_profile(records, *of) for of in classes(records[0])}
    text = (
        "Share of each earlier position in the lift, which is what is added to a feature's pre-activation when it fires, beyond the "
        "average. The rest comes from the feature's own position. Mean over the features of a class."
    )
    return Section("Which positions drive the features?", text, figure=profile_heatmap(profiles, records[0].offsets))
