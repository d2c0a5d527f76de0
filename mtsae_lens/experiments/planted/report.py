"""The parts about planted time: the comparison of architectures, and the three directions that the paper left open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from mtsae_lens.experiments.parts import Part
from mtsae_lens.experiments.planted.arms import (
    ECHOES,
    N_SIDE_SEEDS,
    OURS,
    SPARSITY,
    echo_arms,
    sparsity_arms,
)
from mtsae_lens.experiments.planted.scores import (
    Estimate,
    Naming,
    Record,
    best_setting,
    class_estimate,
    classes,
    margin,
    mean_profile,
    name_by_lags,
    name_by_statistic,
)
from mtsae_lens.experiments.planted.trials import TUNE_SEED, PlantedArm, PlantedSettings, oracle_trial, settings_record, trials
from mtsae_lens.reporting.page import Section, Table
from mtsae_lens.reporting.planted_figures import profile_heatmap, recovery_bars, strength_curves
from mtsae_lens.trials import run_trials

_STATISTICS = {
    "run_length": "length of its runs",
    "context_share": "share of context in its profile",
    "context_lag": "mean lag of its profile",
}
_CONTEXT_ONLY = ("context_share", "context_lag")


def class_label(kind: str, time_scale: int) -> str:
    """Such as `persistent 16`, `cue`, `pattern -8`."""
    return {"persistent": f"persistent {time_scale}", "cue": "cue", "pattern": f"pattern -{time_scale}"}[kind]


def planted_part(settings: PlantedSettings, n_seeds: int, out: Path, n_workers: int) -> tuple[Part, dict[str, PlantedArm]]:
    """Train every architecture, its sparsity chosen on TUNE, on the same planted sequences, and score recovery and naming.

    Returns:
        The part, and the arm of each architecture with the sparsity that was chosen.
    """
    candidates = sparsity_arms(SPARSITY)
    tuning = run_trials(
        out / "tune",
        settings_record(candidates, settings),
        trials(candidates, settings, [TUNE_SEED]),
        "Planted time, sparsity on TUNE",
        n_workers=n_workers,
    )
    best = {
        name: best_setting(tuning, [trial for trial in tuning if trial.startswith(f"{name}/")]).rpartition("/")[0]
        for name in SPARSITY
    }
    chosen = {name: candidates[best[name]] for name in SPARSITY}
    side_arms, side_seeds = echo_arms(chosen), min(n_seeds, N_SIDE_SEEDS)
    jobs = trials(chosen, settings, range(n_seeds)) | trials(side_arms, settings, range(side_seeds))
    for seed in range(n_seeds):
        jobs[f"oracle/seed_{seed}"] = partial(oracle_trial, settings, {}, seed)
    for echo, seed in product(ECHOES, range(side_seeds)):
        jobs[f"oracle/echo_{echo:g}/seed_{seed}"] = partial(oracle_trial, settings, {"echo_magnitude": echo}, seed)
    record = settings_record(chosen | side_arms, settings)
    results = run_trials(out / "trials", record, jobs, "Planted time", n_workers=n_workers)
    records = {name: of_arm(results, name, n_seeds) for name in [*chosen, "oracle"]}
    records |= {name: of_arm(results, name, side_seeds) for name in [*side_arms, *(f"oracle/echo_{e:g}" for e in ECHOES)]}
    by_architecture = {name: records[name] for name in chosen}
    sections = [
        _recovery_section(by_architecture, records["oracle"], settings, chosen, n_seeds),
        _margin_section(by_architecture, records["oracle"]),
        _strength_section(records, settings),
    ]
    if n_seeds > 1:
        sections.append(_naming_section(by_architecture, settings))
    sections.append(_profile_section(by_architecture[OURS]))
    metrics = {
        "chosen_on_tune": {name: dict(arm.sae) for name, arm in chosen.items()},
        "f1": {name: by_class(own, "f1") for name, own in by_architecture.items()},
        "correlation": {name: by_class(own, "correlation") for name, own in by_architecture.items()},
        "oracle_f1": {read: by_class(records["oracle"], read) for read in ("pointwise", "context")},
        "margins": _margins(by_architecture, records["oracle"]),
        "mcc": {name: [record["mcc"] for record in own] for name, own in by_architecture.items()},
        "echo": {
            name: {f"{echo:g}": asdict(class_estimate(records[f"{name}/echo_{echo:g}"], "f1", "pattern")) for echo in ECHOES}
            for name in (OURS, "topk")
        },
    }
    if n_seeds > 1:
        metrics["naming"] = {key: asdict(naming) for key, naming in _namings(by_architecture, settings).items()}
    tables = [table for section in sections[:2] if (table := section.table)]
    return Part("planted", metrics, sections, tables), chosen


def of_arm(results: Mapping[str, Record], arm: str, n_seeds: int) -> list[Record]:
    """The records of one arm, seed by seed."""
    return [results[f"{arm}/seed_{seed}"] for seed in range(n_seeds)]


def by_class(records: Sequence[Record], score: str) -> dict[str, Any]:
    """A score by class of feature, for `metrics.json`."""
    return {class_label(*of): asdict(class_estimate(records, score, *of)) for of in classes(records[0])}


def _recovery_section(
    records: Mapping[str, Sequence[Record]],
    oracle: Sequence[Record],
    settings: PlantedSettings,
    chosen: Mapping[str, PlantedArm],
    n_seeds: int,
) -> Section:
    every = classes(oracle[0])
    scores = {name: {class_label(*of): class_estimate(own, "f1", *of) for of in every} for name, own in records.items()}
    references = {
        title: {class_label(*of): class_estimate(oracle, read, *of).mean for of in every}
        for title, read in (
            ("linear detector of one position, told the truth", "pointwise"),
            ("of the positions MTSAE reads", "context"),
        )
    }
    table = Table(
        ["class of feature", *records, "oracle, one position", "oracle, context"],
        [
            [
                label,
                *(str(scores[name][label]) for name in records),
                *(round(values[label], 3) for values in references.values()),
            ]
            for label in (class_label(*of) for of in every)
        ]
        + [
            ["mcc (directions)", *(f"{sum(r['mcc'] for r in own) / len(own):.3f}" for own in records.values()), None, None],
            ["L0", *(f"{sum(r['l0'] for r in own) / len(own):.1f}" for own in records.values()), None, None],
        ],
    )
    planted = settings.planted
    sparsity = ", ".join(f"{name} {key} {value:g}" for name, arm in chosen.items() for key, value in arm.sae.items())
    text = (
        f"{len(oracle[0]['kind'])} features in {planted.d_in} dimensions, {n_seeds} dictionaries, {settings.n_training_tokens:,} training "
        f"positions, {settings.d_sae} features to an SAE. F1 of detecting each planted feature on TEST sequences, 1 is perfect; matches and "
        f"thresholds come from SELECT, sparsity from a dictionary of its own ({sparsity}). Intervals: 95%, over planted features. A persistent "
        "feature fires in runs of that mean length; a pattern is an echo of magnitude "
        f"{planted.echo_magnitude:g} after two cues, the farther one that many positions back."
    )
    return Section(
        "Planted time: who recovers what?", text, table=table, figure=recovery_bars(scores, references, "F1 on TEST")
    )


def _margins(records: Mapping[str, Sequence[Record]], oracle: Sequence[Record]) -> dict[str, dict[str, Any]]:
    ours = records[OURS]
    kinds = list(dict.fromkeys(oracle[0]["kind"]))
    against: dict[str, dict[str, Any]] = {
        name: {kind: asdict(margin(ours, own, kind)) for kind in kinds} for name, own in records.items() if name != OURS
    }
    against["oracle, one position"] = {kind: asdict(margin(ours, oracle, kind, their_score="pointwise")) for kind in kinds}
    return against


def _margin_section(records: Mapping[str, Sequence[Record]], oracle: Sequence[Record]) -> Section:
    margins = _margins(records, oracle)
    kinds = list(dict.fromkeys(oracle[0]["kind"]))
    shown = {name: {kind: Estimate(**by_kind[kind]) for kind in kinds} for name, by_kind in margins.items()}
    table = Table(
        ["MTSAE minus", *(f"{kind} [95%] (seeds)" for kind in kinds)],
        [
            [
                name,
                *(
                    f"{e.mean:+.3f} [{e.low:+.3f}, {e.high:+.3f}] ({e.seed_low:+.3f} to {e.seed_high:+.3f})"
                    for e in row.values()
                ),
            ]
            for name, row in shown.items()
        ],
    )
    worst = min(row["pattern"].low for row in shown.values()) if "pattern" in kinds else 0.0
    verdict = (
        "MTSAE recovers patterns that no single position shows better than every pointwise SAE, and better than a linear detector of "
        f"one position that is told the truth: every interval lies above {worst:+.3f}."
        if worst > 0
        else f"MTSAE does not beat every pointwise detector on patterns: the lowest end of an interval is {worst:+.3f}."
    )
    n = shown[next(iter(shown))]["pattern"].n if "pattern" in kinds else 0
    return Section("By how much?", f"F1, paired by planted feature (n = {n} patterns). {verdict}", table=table)


def _strength_section(records: Mapping[str, Sequence[Record]], settings: PlantedSettings) -> Section:
    strengths = sorted([*ECHOES, settings.planted.echo_magnitude])

    def curve(name: str, score: str) -> dict[float, Estimate]:
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
    weakest = strengths[0]
    text = (
        "Patterns only. Training rewards what reconstructs, so an echo must be worth reconstructing before its context is of use: at "
        f"magnitude {weakest:g} MTSAE reaches {curves['MTSAE'][weakest].mean:.2f} where the context would allow "
        f"{curves['oracle, context'][weakest].mean:.2f}."
    )
    return Section("How faint may a pattern be?", text, figure=strength_curves(curves, "F1 on TEST"))


def _namings(records: Mapping[str, Sequence[Record]], settings: PlantedSettings) -> dict[str, Naming]:
    namings = {
        f"{name}: persistent, by {statistic}": name_by_statistic(own, statistic, "persistent")
        for name, own in records.items()
        for statistic in _STATISTICS
        if statistic in own[0]
    }
    namings[f"{OURS}: pattern, by lags"] = name_by_lags(records[OURS], settings.planted.lags)
    for name, own in records.items():
        namings[f"{name}: pattern, by run_length"] = name_by_statistic(own, "run_length", "pattern")
    return namings


def _naming_section(records: Mapping[str, Sequence[Record]], settings: PlantedSettings) -> Section:
    namings = _namings(records, settings)
    by = {"lags": "the two lags that hold most of its profile", **_STATISTICS}
    rows = []
    for key, naming in namings.items():
        name, _, rest = key.partition(": ")
        kind, _, statistic = rest.partition(", by ")
        rows.append([
            f"{kind}, by the {by[statistic].removeprefix('the ')}",
            name,
            str(naming.accuracy),
            f"{naming.chance_accuracy:.2f}",
            str(naming.octaves),
            f"{naming.chance_octaves:.2f}",
        ])  # fmt: skip
    table = Table(["what is named, and how", "SAE", "named rightly", "chance", "octaves off", "chance "], rows)
    ours = namings[f"{OURS}: pattern, by lags"].accuracy
    share = namings[f"{OURS}: persistent, by context_share"].accuracy
    runs = max(
        (naming.accuracy for key, naming in namings.items() if not key.startswith(OURS) and "persistent" in key),
        key=lambda e: e.mean,
    )
    needed = "" if share.low > runs.high else ", so for these no temporal encoder is needed to tell"
    text = (
        f"Patterns: the profile of an MTSAE's feature names the planted lags in {ours.mean:.0%} of {ours.n} cases (chance "
        f"{1 / len(settings.planted.lags):.0%}); nothing is calibrated. Persistent features: the share of context names the mean length "
        f"in {share.mean:.0%} of {share.n} cases (chance {1 / len(settings.planted.durations):.0%}), calibrated on the other dictionaries; the "
        f"length of runs, which any SAE shows, does so in {runs.mean:.0%} for the best pointwise SAE{needed}."
    )
    return Section("Is the time scale named rightly?", text, table=table)


def _profile_section(records: Sequence[Record]) -> Section:
    profiles = {class_label(*of): mean_profile(records, *of) for of in classes(records[0])}
    text = (
        "What lifts a feature's pre-activation when it fires, as shares by the position read; the rest is the feature's own position. "
        "Mean over the features of a class."
    )
    return Section("Where features take their evidence from", text, figure=profile_heatmap(profiles, records[0]["offsets"]))
