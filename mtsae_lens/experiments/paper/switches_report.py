"""The third part of `mtsae paper`: its failures as switches, one change at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from mtsae_lens.experiments.paper.measures import METRIC_TITLES
from mtsae_lens.experiments.paper.setup import Subject
from mtsae_lens.experiments.paper.switches import (
    BASE,
    Switch,
    SwitchSettings,
    arms,
    settings_record,
    switch_trials,
    switches,
    values_by_arm,
)
from mtsae_lens.experiments.paper.verdicts import difference, shown, spread, verdict
from mtsae_lens.experiments.parts import Part
from mtsae_lens.reporting.page import Section, Table
from mtsae_lens.reporting.paper_figures import seed_panels
from mtsae_lens.trials import run_trials


def switches_part(subject: Subject, settings: SwitchSettings, n_seeds: int, out: Path, n_workers: int) -> Part:
    """One change at a time to the paper's SAE, given tokens."""
    record = subject.record | settings_record(settings)
    results = run_trials(out / "trials", record, switch_trials(subject, settings, n_seeds), "Switches", n_workers=n_workers)
    values = values_by_arm(results)
    sections = [
        Section(
            "The failures as switches",
            f"The paper's SAE given {settings.n_steps} steps of {settings.batch_size_tokens:,} tokens and a warm-up of 5% of them, width "
            f"{settings.d_sae_per_d_in * subject.d_in:,}, learning rate {settings.lr:g}; each switch changes one thing. {n_seeds} seeds; on "
            f"{settings.n_test_contexts} held-out contexts. Every number says mean ± std (range); differences are paired by seed.",
        ),
        *(switch_section(switch, settings, values) for switch in switches(settings)),
        ranking_section(settings, values),
    ]
    summary = {
        arm: {name: asdict(found) for name, column in metrics.items() if (found := spread(column))}
        for arm, metrics in values.items()
    }
    labels = {name: arm.label for name, arm in arms(settings).items()}
    overview = Table(
        ["arm", *(METRIC_TITLES[name] for name in ("explained_variance", "l0", "dead_features", "scale_cosine"))],
        [
            [labels[arm], *(shown(metrics[name]) for name in ("explained_variance", "l0", "dead_features", "scale_cosine"))]
            for arm, metrics in values.items()
        ],
    )
    return Part("switches", {"values": values, "summary": summary, "labels": labels}, sections, [overview])


def switch_section(switch: Switch, settings: SwitchSettings, values: Mapping[str, Mapping[str, list[float | None]]]) -> Section:
    """Question, verdict, table and figure of one switch."""
    labels = {name: arm.label for name, arm in arms(settings).items()}
    if switch.title == "Token budget":
        labels[BASE] = f"{settings.n_steps:,} steps"
    metric = switch.metrics[0]
    others = {labels[name]: values[name][metric] for name in switch.arms if name != BASE}
    text = f"{switch.question} {verdict(METRIC_TITLES[metric], labels[BASE], values[BASE][metric], others)}"
    if "future_leak" in switch.metrics:
        text += " " + leak_sentence(values)
    table = Table(
        ["arm", *(METRIC_TITLES[name] for name in switch.metrics)],
        [[labels[arm], *(shown(values[arm][name]) for name in switch.metrics)] for arm in switch.arms],
    )
    figure = seed_panels(
        {labels[arm]: values[arm] for arm in switch.arms}, {name: METRIC_TITLES[name] for name in switch.metrics}, {}
    )
    return Section(switch.title, text, table=table, figure=figure)


def leak_sentence(values: Mapping[str, Mapping[str, list[float | None]]]) -> str:
    """What of the circular SAE's score is left without later positions."""
    whole = values[BASE]["ce_loss_score"]
    withheld, replaced = (values[BASE][f"ce_loss_score_{future}"] for future in ("withhold", "replace"))
    return (
        f"The circular SAE recovers {shown(whole)} of the model's loss. With later positions withheld from its taps that changes by "
        f"{difference(withheld, whole)}; with those of another context in their place by {difference(replaced, whole)}. It was trained for "
        "neither, so what is lost is the most that the leak was worth. "
        f"An SAE trained without them (causal) differs by {difference(values['causal']['ce_loss_score'], whole)}."
    )


def ranking_section(settings: SwitchSettings, values: Mapping[str, Mapping[str, list[float | None]]]) -> Section:
    """All arms of the base's length, by what they do to explained variance."""
    base = values[BASE]["explained_variance"]
    known = {name: arm for name, arm in arms(settings).items() if arm.n_steps is None and name != BASE}
    changes = {name: spread([a - b for a, b in _pairs(values[name]["explained_variance"], base)]) for name in known}
    order = sorted(known, key=lambda name: -(found.mean if (found := changes[name]) else 0.0))
    table = Table(
        ["change", "explained variance", "against the paper's SAE", "L0"],
        [
            [
                known[name].label,
                shown(values[name]["explained_variance"]),
                difference(values[name]["explained_variance"], base),
                shown(values[name]["l0"]),
            ]
            for name in order
        ],
    )
    single = [name for name in order if not known[name].defaults]
    text = (
        f"Every change at the same {settings.n_steps} steps, best first. Of the single changes, the most is gained by "
        f"{known[single[0]].label!r} and the most lost by {known[single[-1]].label!r}. L0 differs between arms, and more active features "
        "explain more."
    )
    return Section("Which change matters most?", text, table=table)


def _pairs(values: Sequence[float | None], base: Sequence[float | None]) -> list[tuple[float, float]]:
    return [(a, b) for a, b in zip(values, base, strict=True) if a is not None and b is not None]
