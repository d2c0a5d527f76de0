"""Report the comparison of architectures on planted sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mtsae_lens.experiments.parts import PartReport
from mtsae_lens.experiments.planted.arms import ECHOES, OURS
from mtsae_lens.experiments.planted.comparison import ComparedTrials
from mtsae_lens.experiments.planted.results import (
    ArchitectureComparison,
    ByClass,
    FeatureInterval,
    Naming,
    PlantedRecord,
    Score,
    TemporalTrial,
)
from mtsae_lens.experiments.planted.scores import estimate_class, label_class, list_classes, mean_profile
from mtsae_lens.reporting.page import Section, Table
from mtsae_lens.reporting.planted_figures import profile_heatmap, recovery_bars, strength_curves

_STATISTICS: dict[Score, str] = {
    "run_length": "length of its runs",
    "context_share": "share of context in its profile",
    "context_lag": "mean lag of its profile",
}


def report_comparison(trials: ComparedTrials, found: ArchitectureComparison) -> PartReport:
    """Report what each architecture recovers, by how much MTSAE exceeds the others, and whether time scales are identified.

    Args:
        trials: the trials of the comparison.
        found: their summary.
    """
    recovery, margins = _recovery_section(trials, found), _margin_section(found.margins)
    sections = [recovery, margins, _strength_section(trials)]
    if found.naming:
        sections.append(_naming_section(found.naming))
    sections.append(_profile_section(trials.ours))
    return PartReport(sections, [table for section in (recovery, margins) if (table := section.table)])


def _recovery_section(trials: ComparedTrials, found: ArchitectureComparison) -> Section:
    settings, records = trials.settings, trials.by_architecture
    references = {
        "supervised linear probe on one position (oracle)": found.oracle_f1["pointwise"],
        "supervised linear probe on the positions MTSAE reads (oracle)": found.oracle_f1["context"],
    }
    table = Table(
        ["class of feature", *records, "oracle, one position", "oracle, context"],
        [
            [
                label,
                *(f"{found.f1[name][label]:.3f}" for name in records),
                *(round(values[label].mean, 3) for values in references.values()),
            ]
            for label in found.oracle_f1["pointwise"]
        ]
        + [
            ["mcc (directions)", *(f"{sum(r.mcc for r in own) / len(own):.3f}" for own in records.values()), None, None],
            ["L0", *(f"{sum(r.l0 for r in own) / len(own):.1f}" for own in records.values()), None, None],
        ],
    )
    planted = settings.planted
    sparsity = ", ".join(
        f"{name} {key} {value:g}" for name, chosen in found.chosen_on_tune.items() for key, value in chosen.items()
    )
    text = (
        f"{len(trials.oracle[0].kind)} planted features in {planted.d_in} dimensions, {trials.n_seeds} dictionaries, "
        f"{settings.n_training_tokens:,} training positions, {settings.d_sae} features per SAE. The table gives F1 of detecting a "
        "planted feature on TEST sequences (1 is perfect). Features are matched to planted ones, and thresholds are set, on SELECT. The "
        f"sparsity of each architecture was chosen on a separate dictionary ({sparsity}). Intervals are 95%, over planted features. The "
        "number after persistent is the mean length of the runs in which the feature fires. A pattern is an echo of magnitude "
        f"{planted.echo_magnitude:g} after two cues; its number is how far back the farther cue is."
    )
    return Section(
        "Planted time scales: who recovers what?",
        text,
        table=table,
        figure=recovery_bars(found.f1, _means(references), "F1 on TEST"),
    )


def _means(references: Mapping[str, ByClass]) -> dict[str, dict[str, float]]:
    return {title: {label: value.mean for label, value in by_class.items()} for title, by_class in references.items()}


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


def _strength_section(trials: ComparedTrials) -> Section:
    own = trials.settings.planted.echo_magnitude
    records: dict[str, Sequence[PlantedRecord]] = {**trials.by_architecture, "oracle": trials.oracle, **trials.echoes}

    def curve(name: str, score: Score) -> dict[float, FeatureInterval]:
        return {
            echo: estimate_class(records[name if echo == own else f"{name}/echo_{echo:g}"], score, "pattern")
            for echo in sorted([*ECHOES, own])
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
    profiles = {label_class(*of): mean_profile(records, *of) for of in list_classes(records[0])}
    text = (
        "Share of each earlier position in the lift, which is what is added to a feature's pre-activation when it fires, beyond the "
        "average. The rest comes from the feature's own position. Mean over the features of a class."
    )
    return Section("Which positions drive the features?", text, figure=profile_heatmap(profiles, records[0].offsets))
