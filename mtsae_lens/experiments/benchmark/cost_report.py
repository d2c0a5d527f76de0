"""Write the report's sections on what every method reaches at matched cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mtsae_lens.data.questions import is_question_source
from mtsae_lens.experiments.benchmark.arms import BUDGETS, CONTROL_BUDGETS, MAIN_BUDGET, OURS
from mtsae_lens.experiments.benchmark.reading import most, nearest
from mtsae_lens.experiments.benchmark.summary import AtCost, SeedInterval
from mtsae_lens.experiments.benchmark.task_results import TaskResults
from mtsae_lens.reporting.benchmark_figures import cost_curves
from mtsae_lens.reporting.page import Section, Table

BudgetKey = Callable[[float], str]
"""A function that returns the key of a setting at a budget: `nearest` or `most`."""

_UNITS = (
    "All values are nats added per counted token on TEST, with 95% intervals over seeds and documents. Near and far: the cost, which is "
    "that of the corpus of the role whose loss rises most (0 is best). Random: the same edit of random features that match the chosen ones in "
    "firing rate and strength; in parentheses, how many times as much the chosen features add. Beyond random: the paired difference "
    "(higher is better)."
)
_READING_NAMES = {
    key(budget): f"{text} {budget:g}"
    for key, text in ((nearest, "nearest to the reference at"), (most, "the most at"))
    for budget in CONTROL_BUDGETS
}


def cost_sections(results: TaskResults) -> list[Section]:
    """Make the sections: nearest to the reference at each budget, cost by corpus, most loss, MTSAE minus other SAEs.

    Args:
        results: results of one task.
    """
    name, forget, gap = results.name, results.task.forget, results.reference_gap
    reference = "" if gap is None else f" The reference, which never saw the text, has {gap:+.3f} nats: more is damage."
    sections = []
    if gap is not None:
        text = (
            f"Forget {forget}. For each budget, the setting whose loss on TUNE was nearest to the reference's, among those that cost no "
            f"near or far text more than the budget.{reference} Gap: loss of the edited model minus loss of the reference (0 is best). "
            f"{_UNITS} {_numbers(results)}"
        )
        figure = _curves(results, nearest, "near") if results.task.sources("near") else _curves(results, nearest, "far")
        title = f"{name}: nearest to the reference within each budget"
        sections.append(Section(title, text, cost_table(results, nearest), figure))
        where = (
            f"Nats added per token to every other text (0 is best), within a budget of {MAIN_BUDGET:g}. Neutral text is measured on TEST "
            f"only. {_numbers(results)}"
        )
        sections.append(Section(f"{name}: cost on every other text", where, _corpora_table(results)))
    text = (
        f"Forget {forget}. For each budget, the setting that added the most loss on TUNE, up to the loss of a uniform guess. This shows how "
        f"much damage a method can do, not how well it forgets.{reference} {_UNITS} {_numbers(results)}"
    )
    near = _curves(results, most, "near") if results.task.sources("near") else None
    sections.append(Section(f"{name}: the most loss within each budget", text, cost_table(results, most), near))
    sections.append(
        Section(f"{name}: the most loss, by cost on far text", _numbers(results), figure=_curves(results, most, "far"))
    )
    return [*sections, _difference_section(results)]


def _curves(results: TaskResults, key_of: BudgetKey, cost: str) -> Any:
    keys = [key_of(budget) for budget in BUDGETS]
    points = {method: [found[key] for key in keys if key in found] for method, found in results.at_cost.items()}
    return cost_curves({method: row for method, row in points.items() if row}, results.reference_gap, cost)


def _numbers(results: TaskResults) -> str:
    """Return a sentence on how much text and how many seeds the numbers come from."""
    tokens = results.test_tokens
    rows = [at for found in results.at_cost.values() for at in found.values()]
    if not rows:
        return "No method has a setting within any budget."
    n_documents = {results.task.forget: rows[0].forget.n_documents} | {s: e.n_documents for s, e in rows[0].corpora.items()}
    of_text = [
        f"{source} {tokens[source]:,} tokens ({n_documents[source]} {'people' if is_question_source(source) else 'documents'})"
        for source in tokens
    ]
    return f"n: up to {max(at.forget.n_seeds for at in rows)} seeds; {', '.join(of_text)}."


def cost_table(results: TaskResults, key_of: BudgetKey) -> Table:
    """Make the table of every method at every budget, with random features at the budgets that have them.

    Args:
        results: results of one task.
        key_of: the kind of setting at each budget: `nearest` or `most`.
    """
    asked, goal = is_question_source(results.task.forget), key_of is nearest
    some_missing = any(_n_missing(results, method, key_of) for method in results.methods)
    main = f"at {MAIN_BUDGET:g}"
    header = ["method", *(f"forget at {budget:g}" for budget in BUDGETS)]
    header += [f"gap {main}"] * goal + [f"recall {main}"] * asked + [f"random at {budget:g}" for budget in CONTROL_BUDGETS]
    header += [f"beyond random {main}", f"near {main}", f"far {main}", *(["seeds with no setting"] * some_missing)]
    rows = []
    for method, found in results.at_cost.items():
        at = found.get(key_of(MAIN_BUDGET))
        row: list[Any] = [method, *(_interval(_forget(found.get(key_of(budget)))) for budget in BUDGETS)]
        row += [_interval(at.gap if at else None)] * goal + [_share(at.exact_recall if at else None)] * asked
        row += [_random(found.get(key_of(budget))) for budget in CONTROL_BUDGETS]
        row += [_interval(estimate) for estimate in ((at.more_than_random, at.near, at.far) if at else (None, None, None))]
        rows.append(row + [_n_missing(results, method, key_of)] * some_missing)
    return Table(header, rows)


def _forget(at: AtCost | None) -> SeedInterval | None:
    return at.forget if at else None


def _n_missing(results: TaskResults, method: str, key_of: BudgetKey) -> int:
    at = results.at_cost[method].get(key_of(MAIN_BUDGET))
    return len(results.methods[method]) if at is None else at.n_missing


def _corpora_table(results: TaskResults) -> Table:
    """Make the table of the effect of the setting nearest to the reference on every other text."""
    key = nearest(MAIN_BUDGET)
    shown: Mapping[str, AtCost] = {method: found[key] for method, found in results.at_cost.items() if key in found}
    sources = results.task.sources("near", "far", "neutral")
    header = ["method", *(f"{source} ({results.task.role(source)})" for source in sources)]
    return Table(header, [[m, *(_interval(at.corpora[source]) for source in sources)] for m, at in shown.items()])


def _difference_section(results: TaskResults) -> Section:
    readings = {key: text for key, text in _READING_NAMES.items() if any(key in row for row in results.differences.values())}
    rows = [
        [other, *(_interval(found.get(key)) for key in readings), max(found[key].n_seeds for key in readings if key in found)]
        for other, found in results.differences.items()
        if found
    ]
    text = (
        f"Nats added to the forget text by {OURS} minus nats added by the other SAE, paired by seed and document. Above 0, {OURS} forgets "
        "more. metrics.json has the other budgets."
    )
    table = Table(["SAE", *readings.values(), "seeds"], rows)
    return Section(f"{results.name}: {OURS} minus every other SAE", text, table)


def _interval(estimate: SeedInterval | None) -> str | None:
    return None if estimate is None else f"{estimate}"


def _share(estimate: SeedInterval | None) -> str | None:
    return None if estimate is None else f"{estimate:.0%}"


def _random(found: AtCost | None) -> str | None:
    if found is None or found.random is None:
        return None
    ratio = found.forget.mean / found.random.mean if found.random.mean > 0 else float("inf")
    return f"{found.random.mean:+.3f} ({ratio:.1f}x)"
