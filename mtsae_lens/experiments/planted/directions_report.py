"""Report the three directions that the paper left open, each as an ablation on planted sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtsae_lens.experiments.parts import PartReport
from mtsae_lens.experiments.planted.arms import FAR_LAGS, SEPARATION_COEFFICIENT
from mtsae_lens.experiments.planted.directions import DirectionTrials
from mtsae_lens.experiments.planted.results import OracleTrial, TemporalTrial
from mtsae_lens.experiments.planted.scores import estimate_class, estimate_margin, label_class, list_classes
from mtsae_lens.experiments.planted.training import PlantedArm
from mtsae_lens.reporting.page import Section, Table
from mtsae_lens.sae.separation import SEPARATIONS


def report_directions(trials: DirectionTrials) -> PartReport:
    """Report each ablation beside the plain version.

    Args:
        trials: the trials of the ablations.
    """
    directions, records = trials.directions, trials.by_arm
    sections = [
        _ablation_section("Initialization and normalization", directions["initialization"], records),
        _separation_section(directions["separation"], records),
        _hierarchy_section(records),
        _ablation_section("Memory in the decoder", directions["memory"], records),
        _range_section(directions["range"], records, trials.oracle),
    ]
    return PartReport(sections, [table for section in sections if (table := section.table)])


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def _row(label: str, own: Sequence[TemporalTrial], plain: Sequence[TemporalTrial]) -> list[Any]:
    kinds = ("persistent", "pattern")
    differences = [estimate_margin(own, plain, kind) for kind in kinds]
    return [
        label,
        *(f"{estimate_class(own, 'f1', kind).mean:.3f}" for kind in kinds),
        *("" if own is plain else f"{difference}" for difference in differences),
        _mean([record.explained_variance for record in own]),
    ]


_ABLATION_HEADER = [
    "setting",
    "F1 persistent",
    "F1 patterns",
    "persistent, difference",
    "patterns, difference",
    "explained variance",
]


def _ablation_section(title: str, group: Mapping[str, PlantedArm], records: Mapping[str, Sequence[TemporalTrial]]) -> Section:
    plain = records[next(iter(group))]
    rows = [_row(label, records[label], plain) for label in group]
    text = (
        f"One change to the default at a time, {len(plain)} seeds. Differences to the default are paired by planted feature. Higher is "
        "better."
    )
    return Section(title, text, table=Table(_ABLATION_HEADER, rows))


def _separation_section(group: Mapping[str, PlantedArm], records: Mapping[str, Sequence[TemporalTrial]]) -> Section:
    plain = records[next(iter(group))]
    header = [
        *_ABLATION_HEADER[:1],
        *_ABLATION_HEADER[1:3],
        "patterns, difference",
        *(f"{name} after" for name in SEPARATIONS),
        "R2 all scales",
        "unique to context",
        "spread over features",
    ]
    rows = []
    for label in group:
        own = records[label]
        row = _row(label, own, plain)
        predictivity = [record.predictivity for record in own]
        unique = [
            sum(value or 0.0 for name, value in each.items() if name.startswith("unique_") and name != "unique_0")
            for each in predictivity
        ]
        rows.append([
            *row[:3],
            row[4],
            *(f"{sum(r.separation[name] for r in own) / len(own):.3f}" for name in SEPARATIONS),
            *(f"{sum(values) / len(values):.4f}" for values in (
                [each["all"] or 0.0 for each in predictivity],
                unique,
                [each["spread"] or 0.0 for each in predictivity],
            )),
        ])  # fmt: skip
    text = (
        f"In each row one loss was used in training, with weight {SEPARATION_COEFFICIENT:g}. The columns after a name give all losses after "
        "training, from 0 (the scales share nothing) to 1 (they are identical). R2 all scales: how well all scales together predict a "
        "feature's activation linearly. Unique to context: R2 lost without a scale that reads context, summed over these scales. Spread: "
        "standard deviation over features of the R2 of a single scale. For F1, R2 and unique to context, higher is better."
    )
    return Section("Separation beyond cosine", text, table=Table(header, rows))


def _hierarchy_section(records: Mapping[str, Sequence[TemporalTrial]]) -> Section:
    nested, plain = records["nested"], records["default"]
    labels = list_classes(nested[0])
    rows = []
    for of in labels:
        groups = [
            group
            for record in nested
            for group, kind, scale in zip(record.group or (), record.kind, record.time_scale, strict=True)
            if (kind, scale) == of
        ]
        rows.append([
            label_class(*of),
            f"{estimate_class(plain, 'f1', *of).mean:.3f}",
            f"{estimate_class(nested, 'f1', *of).mean:.3f}",
            *(f"{groups.count(group) / len(groups):.2f}" for group in range(len(nested[0].dilations))),
        ])  # fmt: skip
    dilations = nested[0].dilations
    header = ["class of feature", "F1 plain", "F1 nested", *(f"reads to dilation {d:g}" for d in dilations)]
    difference = estimate_margin(nested, plain, "pattern")
    text = (
        "The features form nested groups. The first group reads the token alone, and each further group reads one more scale. The columns "
        "on the right give the share of a class of planted features that is matched to each group. Against the plain version, F1 on "
        f"patterns differs by {difference}. Explained variance is {_mean([r.explained_variance for r in nested])} with nested groups and "
        f"{_mean([r.explained_variance for r in plain])} without."
    )
    return Section("A hierarchy of scales", text, table=Table(header, rows))


def _range_section(
    group: Mapping[str, PlantedArm], records: Mapping[str, Sequence[TemporalTrial]], oracle: Sequence[OracleTrial]
) -> Section:
    plain = records[next(iter(group))]
    patterns = [of for of in list_classes(plain[0]) if of[0] == "pattern"]
    rows: list[list[Any]] = [
        [
            label,
            ", ".join(f"{d:g}" for d in records[label][0].dilations),
            *(f"{estimate_class(records[label], 'f1', *of):.3f}" for of in patterns),
            f"{estimate_class(records[label], 'f1', 'persistent').mean:.3f}",
        ]
        for label in group
    ]
    rows.append(["oracle, one position", None, *(f"{estimate_class(oracle, 'pointwise', *of).mean:.3f}" for of in patterns),
                 f"{estimate_class(oracle, 'pointwise', 'persistent').mean:.3f}"])  # fmt: skip
    text = (
        f"Patterns with cues at {', '.join(str(pair) for pair in FAR_LAGS['lags'])} positions back, of which the default dilations read at "
        "most one. F1 on TEST (higher is better). Selected: dilations from forward selection on the first training sequences. Learned: "
        "dilations are parameters (the table shows those of seed 0). Long: a receptive field of 127 positions."
    )
    header = ["setting", "dilations", *(f"{label_class(*of)}" for of in patterns), "persistent"]
    return Section(
        "Longer range: selected and learned dilations, and a receptive field of 127 positions", text, table=Table(header, rows)
    )
