"""The benchmark as sections: SAEs, cost tables and curves, differences, the edit in full, attacks, stability, samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mtsae_lens.benchmark.arms import CONTROL_BUDGETS, MAIN_BUDGET, OURS, BenchmarkTask, Scale
from mtsae_lens.benchmark.reading import most, nearest
from mtsae_lens.benchmark.results import Cells, TaskResults
from mtsae_lens.benchmark.summary import AtCost, Estimate
from mtsae_lens.commands.attacks_page import attack_sections
from mtsae_lens.commands.parts import Part
from mtsae_lens.data.facts import is_fact_source
from mtsae_lens.reporting.benchmark_figures import cost_curves
from mtsae_lens.reporting.page import Section, Table
from mtsae_lens.reporting.samples import sample_table

_SUPPRESSION = "An edit at a hook is suppression, not deletion: without the hook the model is what it was, exactly."
_UNITS = (
    "Measured on TEST, nats per counted token, 95% intervals over seeds and documents; near and far are the corpora that lost most. "
    "Random: the same edit of features matched in firing rate and strength, and how many times as much the chosen ones do."
)
_READING_NAMES = {
    key(budget): f"{text} {budget:g}"
    for key, text in ((nearest, "nearest to the reference at"), (most, "the most at"))
    for budget in CONTROL_BUDGETS
}


def benchmark_part(
    trained: Cells, cells: Cells, tasks: Mapping[str, BenchmarkTask], scale: Scale, architectures: Sequence[str]
) -> Part:
    """All of it."""
    metrics: dict[str, Any] = {"saes": dict(trained)}
    sections, tables = [_saes(trained, architectures)], []
    for name, benchmark_task in tasks.items():
        results = TaskResults(name, benchmark_task.task(scale.contexts_per_split), cells, architectures)
        metrics[name] = results.metrics()
        sections += _task_sections(results)
        tables.append(cost_table(results, most if results.reference is None else nearest))
    return Part("unlearning", metrics, sections, tables)


def _saes(trained: Cells, architectures: Sequence[str]) -> Section:
    keys = ("l0", "explained_variance", "ce_loss_score", "dead_features")
    rows = []
    for architecture in architectures:
        seeds = [row for name, row in trained.items() if name.split("/")[0] == architecture]
        means = [sum(seed[key] for seed in seeds) / len(seeds) if key in seeds[0] else None for key in keys]
        rows.append([architecture, *means, len(seeds)])
    text = "Trained on the same text with the same width, schedule and number of tokens; measured on held-out text with SAELens's run_evals."
    return Section("The SAEs", text, table=Table(["architecture", *keys, "seeds"], rows))


def _task_sections(results: TaskResults) -> list[Section]:
    sections = [*_cost_sections(results), _difference_section(results)]
    mains, attacked = results.of_first_seed("main"), results.of_first_seed("attacks")
    if mains:
        sections.append(_main_section(results.name, results.task.forget, mains))
    if attacked:
        sections += attack_sections(results.name, attacked, results.reference, results.clean_nll)
    if results.stability:
        sections.append(_stability_section(results))
    if OURS in mains and mains[OURS]["samples"]:
        lead = f"Greedy continuations of held-out text, before and after the edit with {OURS} (seed 0)."
        sections.append(Section(f"{results.name}: samples", lead, html=sample_table(mains[OURS]["samples"])))
    return sections


def _cost_sections(results: TaskResults) -> list[Section]:
    name, forget, gap = results.name, results.task.forget, results.reference_gap
    reference = "" if gap is None else f" The reference, which never saw the text, loses {gap:+.3f}: more is damage."
    sections = []
    if gap is not None:
        text = (
            f"Forget {forget}. The setting whose forgetting on TUNE was nearest to the reference's while no near- or far-retain text "
            f"lost more than 0.02 or 0.05 nats.{reference} {_UNITS} {_SUPPRESSION}"
        )
        sections.append(Section(f"{name}: as near to the reference as the price allows", text, cost_table(results, nearest)))
        where = f"Changes of every other text at {MAIN_BUDGET:g}; neutral text was never looked at before."
        sections.append(Section(f"{name}: where the price is paid", where, _corpora_table(results)))
    text = (
        f"Forget {forget}. The setting that added most to the loss on TUNE at that price, up to that of guessing every token alike: "
        f"how much a method can break, not how well it forgets.{reference} {_UNITS}"
    )
    curves = {
        method: points
        for method, found in results.at_cost.items()
        if (points := [at for key, at in found.items() if not key.endswith("goal")])
    }
    near = cost_curves(curves, gap, "near") if results.task.sources("near") else None
    sections.append(Section(f"{name}: the most at the price", text, cost_table(results, most), near))
    sections.append(Section(f"{name}: against far-retain text", figure=cost_curves(curves, gap, "far")))
    return sections


def cost_table(results: TaskResults, key: Callable[[float], str]) -> Table:
    """Every method at the budgets at which it was controlled, by one of the two readings."""
    asked = is_fact_source(results.task.forget)
    some_missing = any(_n_missing(results, method, key) for method in results.methods)
    header = ["method"]
    for budget in CONTROL_BUDGETS:
        header += [f"forget at {budget:g}", *([f"recall at {budget:g}"] if asked else []), f"random at {budget:g}"]
    header += [f"near at {MAIN_BUDGET:g}", f"far at {MAIN_BUDGET:g}", *(["seeds with no setting"] if some_missing else [])]
    rows = []
    for method, found in results.at_cost.items():
        row = _cost_row(method, found, key, asked=asked)
        rows.append([*row, _n_missing(results, method, key)] if some_missing else row)
    return Table(header, rows)


def _n_missing(results: TaskResults, method: str, key: Callable[[float], str]) -> int:
    at = results.at_cost[method].get(key(MAIN_BUDGET))
    return len(results.methods[method]) if at is None else at.n_missing


def _cost_row(method: str, found: Mapping[str, AtCost], key: Callable[[float], str], *, asked: bool) -> list[Any]:
    cells: list[Any] = [method]
    for budget in CONTROL_BUDGETS:
        at = found.get(key(budget))
        cells += [_interval(at.forget) if at else None]
        cells += [_share(at.exact_recall) if at and at.exact_recall else None] if asked else []
        cells += [_random(at) if at else None]
    at = found.get(key(MAIN_BUDGET))
    return [*cells, _interval(at.near) if at and at.near else None, _interval(at.far) if at else None]


def _share(estimate: Estimate) -> str:
    return f"{100 * estimate.mean:.0f}% [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"


def _corpora_table(results: TaskResults) -> Table:
    """What the setting nearest to the reference did to every other text."""
    key = nearest(MAIN_BUDGET)
    shown = {method: found[key] for method, found in results.at_cost.items() if key in found}
    sources = results.task.sources("near", "far", "neutral")
    header = ["method", *(f"{source} ({results.task.role(source)})" for source in sources)]
    return Table(header, [[m, *(f"{at.corpora[s].mean:+.3f}" for s in sources)] for m, at in shown.items()])


def _difference_section(results: TaskResults) -> Section:
    readings = {key: text for key, text in _READING_NAMES.items() if any(key in row for row in results.differences.values())}
    rows = [
        [other, *(_interval(found[key]) if key in found else None for key in readings)]
        for other, found in results.differences.items()
    ]
    text = "Paired by seed and document; above 0, ours forgets more. The other budgets are in metrics.json."
    return Section(f"{results.name}: {OURS} less every other SAE", text, Table(["SAE", *readings.values()], rows))


def _stability_section(results: TaskResults) -> Section:
    text = (
        "The first features of a score. Halves: Jaccard overlap of the choices from two halves of the documents (seed "
        "0), and what chance gives. Seeds: "
        "mean over pairs of seeds of the best cosine between decoder rows of chosen features, and of random ones."
    )
    rows = [
        [
            architecture,
            score,
            found["n_features"],
            f"{found['halves']:.2f}" if found["halves"] is not None else None,
            f"{found['chance']:.3f}",
            f"{found['seeds']['cosine']:.2f}" if found["seeds"] else None,
            f"{found['seeds']['chance']:.2f}" if found["seeds"] else None,
        ]
        for architecture, scores in results.stability.items()
        for score, found in scores.items()
    ]
    header = ["SAE", "score", "features", "halves", "chance", "seeds", "random features"]
    return Section(f"{results.name}: stability of the choice", text, Table(header, rows))


def _main_section(name: str, forget: str, mains: Mapping[str, Mapping[str, Any]]) -> Section:
    """The setting nearest to the reference, in full."""
    text = (
        f"Of seed 0, the setting within {MAIN_BUDGET:g} nats whose forgetting on TUNE is nearest to the reference's. "
        f"Gap: its loss less the "
        "reference's (0 is best; above is damage). Calibrated: nats added after an output bias was refitted, so that "
        "shifted logits do not count. "
        "KS: distance between the two models' losses per document (0: indistinguishable). Gate: share of forget positions "
        "at which it is open, and its "
        "AUROC against the near text (chance 0.5). Distinct-2 and repeated 4-grams of greedy text on the forget prompts, "
        "before -> after."
    )
    header = ["method", "gap", "KS", "calibrated", "gate open", "gate AUROC", "distinct-2", "repeated"]
    return Section(f"{name}: beside the reference", text, Table(header, [_main_row(m, g, forget) for m, g in mains.items()]))


def _main_row(method: str, main: Mapping[str, Any], forget: str) -> list[Any]:
    reference, gate = main.get("reference"), main.get("gate")
    health = main["generation"].get(forget)
    near = next(iter(gate["others"].values())) if gate else None
    return [
        method,
        f"{reference['nll_gap']:+.3f}" if reference else None,
        f"{reference['documents']['ks']:.2f}" if reference else None,
        f"{main['calibrated_nll_delta']:+.3f}",
        f"{100 * gate['true_positives']['positions']:.0f}%" if gate else None,
        f"{near['by_position'][0]['auroc']:.3f}" if near else None,
        *(
            (f"{health['clean'][key]:.2f} -> {health['edited'][key]:.2f}" if health else None)
            for key in ("distinct_2", "repeated")
        ),
    ]


def _interval(estimate: Estimate) -> str:
    return f"{estimate.mean:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def _random(found: AtCost) -> str | None:
    if found.random is None:
        return None
    ratio = found.forget.mean / found.random.mean if found.random.mean > 0 else float("inf")
    return f"{found.random.mean:+.3f} ({ratio:.1f}x)"
