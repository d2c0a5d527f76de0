"""Report the comparison: who is ahead where, tables and figures over L0, and what the search tried."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mtsae_lens.experiments.compare.results import (
    COMPARED,
    Cell,
    CompareResult,
    Searched,
    Verdict,
    compute_range,
    group_cells,
)
from mtsae_lens.experiments.compare.settings import CompareSettings
from mtsae_lens.experiments.compare.summary import summarize, warn_of_noise, warn_of_rates_at_an_end
from mtsae_lens.machine_paths import shorten
from mtsae_lens.records import Interval
from mtsae_lens.reporting.compare_figures import FrontierPoint, frontier
from mtsae_lens.reporting.page import Section, Table

_PANELS = {
    "explained_variance_without_massive": "explained variance",
    "ce_loss_score": "ce_loss_score",
    "kl_div_with_sae": "KL divergence, nats per token",
    "dead_features": "dead features",
}
_CODED_PANELS = {
    "explained_variance_coded": "explained variance of what is received",
    "explained_variance_without_massive": "explained variance",
}


@dataclass(frozen=True, eq=False)
class CompareReport:
    """What the report says: a lead, sentences, sections, and tables for the terminal."""

    lead: str
    summary: list[str]
    sections: list[Section]
    tables: list[Table]


def report_comparison(result: CompareResult, settings: CompareSettings, model: str) -> CompareReport:
    """Make the report.

    Args:
        result: what was measured.
        settings: settings of the command.
        model: name of the language model.
    """
    size, cells, verdicts = settings.size(), result.cells, result.verdicts
    hook_names = list(dict.fromkeys(cell.hook_name for cell in cells))
    tables = [cells_table([cell for cell in cells if cell.hook_name == hook_name]) for hook_name in hook_names]
    sections = [Section("Who is ahead?", _VERDICTS_TEXT, table=verdicts_table(verdicts))] if verdicts else []
    for hook_name, table in zip(hook_names, tables, strict=True):
        own = [cell for cell in cells if cell.hook_name == hook_name]
        figure = frontier(_points(own, "l0", _PANELS), _PANELS, "L0")
        sections.append(Section(f"L0 against fidelity: {hook_name}", _FIGURE_TEXT, figure=figure))
        figure = frontier(_points(own, "bits_per_token", _CODED_PANELS), _CODED_PANELS, "bits per token")
        sections.append(Section(f"Bits against fidelity: {hook_name}", _CODED_TEXT.format(settings.value_bits), figure=figure))
        sections.append(Section(f"All SAEs: {hook_name}", _CELLS_TEXT, table=table))
    sections.append(Section("The search on TUNE", _SEARCH_TEXT, table=search_table(result.search)))
    lead = (
        f"{shorten(model)}: SAEs of {size.d_sae:,} features, trained on {size.training_tokens:,} tokens of one cache, and measured on "
        f"{size.n_eval_contexts:,} contexts of TEST."
    )
    summary = [
        *summarize(verdicts, cells, size.n_seeds),
        *warn_of_noise(cells),
        *warn_of_rates_at_an_end(result.search, size.lr),
        *(
            [f"Training diverged, and these SAEs are not in the results: {', '.join(result.diverged)}."]
            if result.diverged
            else []
        ),
    ]
    return CompareReport(lead, summary, sections, [verdicts_table(verdicts)] if verdicts else tables)


_VERDICTS_TEXT = (
    "Each architecture of this package beside the best one of SAELens at the same hook, L0 and metric. The best one has the highest mean on "
    "TEST, out of those whose mean L0 is not above the wanted one by more than --l0-margin. In brackets: smallest and largest over seeds. "
    "Ahead: the worst seed is above the best seed of the other one."
)
_FIGURE_TEXT = (
    "Mean over seeds on TEST; bars reach from the smallest to the largest. L0 is the one that was measured. Click a name to hide or show it; "
    "floors are hidden at first. Explained variance is without massive tokens."
)
_CODED_TEXT = (
    "What it costs to send the features of a token, and what the receiver decodes. For every feature an adaptive code says whether it fires, "
    "given whether it fired at the position before, and for every active one its value in 2^{} levels. Its counts start from SELECT. Right: "
    "explained variance of the SAE itself, without rounding."
)
_CELLS_TEXT = (
    "Mean over seeds on TEST, and in brackets the smallest and largest. Explained variance is without massive tokens, which outweigh all "
    "others. Dead features fire on none of the tokens of TEST. FLOPs: 6 for each weight of a matrix and training token, as if all products "
    "were dense. Seconds: wall time of one training, which depends on what else the machine did; - where it was interrupted."
)
_SEARCH_TEXT = (
    "Trainings at seed 0, measured on TUNE. Where L0 is a setting, short trainings choose the learning rates that are compared again at full "
    "length, because a short training favors high ones. Otherwise all trainings are at full length, and approach the wanted L0 by the "
    "sparsity coefficient. The learning rate with the highest explained variance is taken."
)


def _format(found: Interval | None, form: str = ".3f") -> str | None:
    if found is None:
        return None
    if found.low == found.high:
        return f"{found.mean:{form}}"
    return f"{found.mean:{form}} [{found.low:{form}}, {found.high:{form}}]"


def cells_table(cells: Sequence[Cell]) -> Table:
    """Make the table of all SAEs at one hook, one row for each architecture and L0.

    Args:
        cells: the cells.
    """
    forms = {
        "l0": ".1f",
        "explained_variance_without_massive": ".3f",
        "ce_loss_score": ".3f",
        "kl_div_with_sae": ".3f",
        "dead_features": ".0f",
        "explained_variance_with_another_past": ".3f",
        "bits_per_token": ".1f",
        "explained_variance_coded": ".3f",
    }
    forms = {name: form for name, form in forms.items() if any(cell.value(name) is not None for cell in cells)}
    titles = {"l0": "L0", "explained_variance_without_massive": "explained variance", "kl_div_with_sae": "KL"}
    titles |= {"dead_features": "dead", "explained_variance_with_another_past": "with another past"}
    titles |= {"bits_per_token": "bits per token", "explained_variance_coded": "explained variance, coded"}
    header = ["SAE", "wanted L0", *(titles.get(name, name) for name in forms), "seeds", "lr", "coefficient"]
    rows = []
    for (_, target, name), own in group_cells(cells).items():
        trained, flops = own[0].trained, own[0].training_flops
        seconds = [cell.trained.seconds for cell in own if cell.trained and cell.trained.seconds is not None]
        rows.append([
            name,
            target,
            *(_format(compute_range([cell.value(metric) for cell in own]), form) for metric, form in forms.items()),
            None if own[0].seed is None else len(own),
            trained and trained.lr,
            trained and trained.coefficient,
            own[0].measured.d_sae,
            own[0].measured.n_parameters,
            None if flops is None else f"{flops:.2e}",
            own[0].n_training_tokens,
            round(sum(seconds) / len(seconds), 1) if seconds else None,
        ])  # fmt: skip
    return Table([*header, "features", "parameters", "training FLOPs", "tokens", "seconds"], rows)


def verdicts_table(verdicts: Sequence[Verdict]) -> Table:
    """Make the table of who is ahead.

    Args:
        verdicts: the comparisons.
    """
    rows = [
        [v.hook_name, v.target_l0, v.name, COMPARED[v.metric], v.outcome, _format(v.difference, "+.3f"), _format(v.ours),
         _format(v.theirs), v.best]
        for v in verdicts
    ]  # fmt: skip
    return Table(["hook", "L0", "SAE", "metric", "outcome", "difference", "value", "best value", "best of SAELens"], rows)


def search_table(search: Sequence[Searched]) -> Table:
    """Make the table of everything that was tried on TUNE.

    Args:
        search: the search of every arm, at each hook and L0.
    """
    rows: list[list[Any]] = []
    for of_arm in search:
        stages = {"search": of_arm.trials, "final": of_arm.finals[1:], "chosen": of_arm.finals[:1]}
        rows += [
            [
                of_arm.hook_name,
                of_arm.name,
                of_arm.target_l0,
                stage,
                t.lr,
                t.coefficient,
                t.l0,
                t.explained_variance,
                t.failed or None,
            ]
            for stage, trials in stages.items()
            for t in trials
        ]
    header = ["hook", "SAE", "wanted L0", "stage", "lr", "coefficient", "L0", "explained variance", "ended early"]
    return Table(header, rows)


def _points(cells: Sequence[Cell], x: str, panels: Iterable[str]) -> list[FrontierPoint]:
    points = []
    for (_, _, name), own in group_cells(cells).items():
        place = compute_range([cell.value(x) for cell in own])
        values = {metric: compute_range([cell.value(metric) for cell in own]) for metric in panels}
        if place is not None:
            known = {metric: found for metric, found in values.items() if found}
            points.append(FrontierPoint(name, place.mean, known, is_floor=own[0].role == "floor"))
    return points
