"""Report the third part of `mtsae paper`: its SAE with one change at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mtsae_lens.experiments.paper.measures import METRIC_TITLES
from mtsae_lens.experiments.paper.results import SwitchesResult
from mtsae_lens.experiments.paper.spreads import compute_spread, show_difference, show_spread
from mtsae_lens.experiments.paper.switch_arms import BASE, Switch, SwitchSettings, build_arms, list_switches
from mtsae_lens.experiments.parts import PartReport
from mtsae_lens.reporting.page import Section, Table
from mtsae_lens.reporting.paper_figures import seed_panels


def report_switches(found: SwitchesResult, settings: SwitchSettings, n_seeds: int, d_in: int) -> PartReport:
    """Compare the arms.

    Args:
        found: what was measured.
        settings: settings that all arms share.
        n_seeds: number of seeds.
        d_in: width of the activations.
    """
    values = found.values
    sections = [
        Section(
            "One change at a time",
            f"The base is the paper's SAE with {settings.n_steps} steps of {settings.batch_size_tokens:,} tokens, a warm-up of 5% of the "
            f"steps, width {settings.d_sae_per_d_in * d_in:,} and learning rate {settings.lr:g}. Each arm changes one thing. {n_seeds} "
            f"seeds, measured on {settings.n_test_contexts} held-out contexts. Numbers are mean ± std (range) over seeds, and "
            "differences are paired by seed.",
        ),
        *(_switch_section(switch, settings, values) for switch in list_switches(settings)),
        _leak_section(values),
        _ranking_section(settings, values),
    ]
    overview = Table(
        ["arm", *(METRIC_TITLES[name] for name in ("explained_variance", "l0", "dead_features", "scale_cosine"))],
        [
            [
                found.labels[arm],
                *(show_spread(metrics[name]) for name in ("explained_variance", "l0", "dead_features", "scale_cosine")),
            ]
            for arm, metrics in values.items()
        ],
    )
    return PartReport(sections, [overview])


def _switch_section(
    switch: Switch, settings: SwitchSettings, values: Mapping[str, Mapping[str, Sequence[float | None]]]
) -> Section:
    """Make the section on one switch: its question, table and figure.

    Args:
        switch: the question.
        settings: settings that all arms share.
        values: one value per seed, by arm and metric.
    """
    labels = {name: arm.label for name, arm in build_arms(settings).items()}
    if switch.title == "Token budget":
        labels[BASE] = f"{settings.n_steps:,} steps"
    metric = switch.metrics[0]
    table = Table(
        ["arm", *(METRIC_TITLES[name] for name in switch.metrics), f"{METRIC_TITLES[metric]}, against {labels[BASE]}"],
        [
            [
                labels[arm],
                *(show_spread(values[arm][name]) for name in switch.metrics),
                None if arm == BASE else show_difference(values[arm][metric], values[BASE][metric]),
            ]
            for arm in switch.arms
        ],
    )
    figure = seed_panels(
        {labels[arm]: values[arm] for arm in switch.arms}, {name: METRIC_TITLES[name] for name in switch.metrics}, {}
    )
    return Section(switch.title, switch.question, table=table, figure=figure)


def _leak_section(values: Mapping[str, Mapping[str, Sequence[float | None]]]) -> Section:
    """Make the section on how much of the circular SAE's score remains without later positions.

    Args:
        values: one value per seed, by arm and metric.
    """
    whole = values[BASE]["ce_loss_score"]
    scores = {
        "circular": whole,
        "circular, later positions withheld from its taps": values[BASE]["ce_loss_score_withhold"],
        "circular, later positions replaced by those of another context": values[BASE]["ce_loss_score_replace"],
        "causal": values["causal"]["ce_loss_score"],
    }
    rows = [
        [name, show_spread(score), None if score is whole else show_difference(score, whole)] for name, score in scores.items()
    ]
    text = (
        "Later positions are withheld from the circular SAE, or replaced. It was not trained for either, so the loss in score is an upper "
        "limit for the value of the leak."
    )
    return Section("What is the leak worth?", text, table=Table(["SAE", "ce_loss_score", "against circular"], rows))


def _ranking_section(settings: SwitchSettings, values: Mapping[str, Mapping[str, Sequence[float | None]]]) -> Section:
    """Make the table of all arms with as many steps as the base, ranked by explained variance.

    Args:
        settings: settings that all arms share.
        values: one value per seed, by arm and metric.
    """
    base = values[BASE]["explained_variance"]
    known = {name: arm for name, arm in build_arms(settings).items() if arm.n_steps is None and name != BASE}
    changes = {name: compute_spread([a - b for a, b in _pairs(values[name]["explained_variance"], base)]) for name in known}
    order = sorted(known, key=lambda name: -(found.mean if (found := changes[name]) else 0.0))
    table = Table(
        ["change", "explained variance", "against the paper's SAE", "L0"],
        [
            [
                known[name].label,
                show_spread(values[name]["explained_variance"]),
                show_difference(values[name]["explained_variance"], base),
                show_spread(values[name]["l0"]),
            ]
            for name in order
        ],
    )
    text = (
        f"Every change after the same {settings.n_steps} steps, best first. L0 differs between arms, and more active features explain more "
        "variance."
    )
    return Section("Which change matters most?", text, table=table)


def _pairs(values: Sequence[float | None], base: Sequence[float | None]) -> list[tuple[float, float]]:
    return [(a, b) for a, b in zip(values, base, strict=True) if a is not None and b is not None]
