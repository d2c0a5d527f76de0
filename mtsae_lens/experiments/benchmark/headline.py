"""Say first what was forgotten, at what cost, and what came back under attack: in sentences, and in one row per method."""

from __future__ import annotations

from typing import Any

from mtsae_lens.commands.recovery_report import recovery_summary
from mtsae_lens.data.questions import is_question_source
from mtsae_lens.experiments.benchmark.arms import KNOWN_GROUPS, MAIN_BUDGET, OURS, choose_gate
from mtsae_lens.experiments.benchmark.cells import Attacks
from mtsae_lens.experiments.benchmark.reading import most, nearest
from mtsae_lens.experiments.benchmark.summary import AtCost
from mtsae_lens.experiments.benchmark.task_results import TaskResults
from mtsae_lens.reporting.page import Section, Table
from mtsae_lens.unlearning.recovery.shares import MIN_FORGOTTEN
from mtsae_lens.unlearning.results import SAME_EDIT

_TEXT = (
    "One row per method, at the setting {chosen} within {budget:g} nats on TUNE. Nats added per token on TEST to the forget text, and to "
    "the near and the far text whose loss rises most (0 is best). Random: the same edit of random features. Relearning: the largest share of "
    "the forgetting that an attacker undoes by finetuning on forget text, with what the attacker had. Perturbation: the largest share that "
    "one vector at the hook undoes, with its 95% interval over documents. For both, 0% is best and 100% is the loss before unlearning. "
    "Attacks are on seed 0."
)

_OF_PEOPLE = (
    " The gate recognizes the people to forget (known groups), and behind it the decoder directions of the chosen features are projected out. "
    "Without a gate, the chosen features are rescaled."
)


def summarize_task(results: TaskResults) -> str:
    """Describe in sentences what was forgotten, at what cost, whether random features forget as much, and what came back under attack.

    The sentences are about the MTSAE, or without one about the first architecture.

    Args:
        results: results of one task.
    """
    shown = _shown(results)
    method = next((name for name in (OURS, *results.architectures) if name in results.methods), None)
    at = None if method is None else shown.get(method)
    if at is None:
        found = (
            f"no setting of {method or 'any SAE'} is within {MAIN_BUDGET:g} nats on TUNE, so nothing was forgotten at that cost"
        )
        return f"{results.name}: {found}. {_best(results)}".strip()
    gap = results.reference_gap
    reference = "" if gap is None else f", where a model that never saw the text has {gap:+.3f}"
    near = "" if at.near is None else f"{at.near} on near text and "
    said = (
        f"{results.name}: editing features of {method} adds {at.forget} nats per token to the loss on {results.task.forget}{reference}, at a "
        f"cost of {near}{at.far} on far text (TEST, seeds: {at.forget.n_seeds}; within {MAIN_BUDGET:g} on TUNE)."
    )
    asked = "" if at.exact_recall is None else f"{at.exact_recall.mean:.0%} of its questions are still answered."
    return " ".join(
        part for part in (said, asked, _compare_with_random(at), _came_back(results, str(method)), _best(results)) if part
    )


def headline_section(results: TaskResults) -> Section:
    """Make the section with one row per method: what it forgot, at what cost, and what came back under attack.

    Args:
        results: results of one task.
    """
    chosen = "with the most loss" if results.reference is None else "nearest to the reference"
    title = f"{results.name}: forgotten, at what cost, and what came back"
    of_people = _OF_PEOPLE if choose_gate(results.task.corpora) == KNOWN_GROUPS else ""
    return Section(title, _TEXT.format(chosen=chosen, budget=MAIN_BUDGET) + of_people, _table(results))


def _shown(results: TaskResults) -> dict[str, AtCost]:
    """Return the setting of every method that the headline shows."""
    key = (most if results.reference is None else nearest)(MAIN_BUDGET)
    return {method: found[key] for method, found in results.at_cost.items() if key in found}


def _table(results: TaskResults) -> Table:
    rows: list[list[Any]] = []
    unit = _unit(results)
    for method, at in _shown(results).items():
        costs = [f"{at.forget}", None if at.near is None else f"{at.near.mean:+.3f}", f"{at.far.mean:+.3f}"]
        random = None if at.random is None else f"{at.random.mean:+.3f}"
        rows.append([f"{results.name}: {method}", *costs, random, *_attacked(results.attacks.get(method), unit)])
    if results.reference is not None:
        deltas = {source: effect.nll_delta for source, effect in results.reference.corpora.items()}
        near, far = (_highest([deltas[s] for s in results.task.sources(role) if s in deltas]) for role in ("near", "far"))
        forget = f"{deltas[results.task.forget]:+.3f}"
        rows.append([f"{results.name}: reference", forget, near, far, None, *_attacked(results.reference.attacks, unit)])
    return Table(["method", "forgotten", "near", "far", "random", "back by relearning", "back by perturbation"], rows)


def _highest(deltas: list[float]) -> str | None:
    return f"{max(deltas):+.3f}" if deltas else None


def _unit(results: TaskResults) -> str:
    return "people" if is_question_source(results.task.forget) else "documents"


def _attacked(attacks: Attacks | None, unit: str) -> list[str | None]:
    if attacks is None:
        return [None, None]
    relearned = _relearned(attacks, unit)
    worst = None if attacks.recovery is None else attacks.recovery.worst
    return [None if relearned is None else f"{relearned[0]:.0%} ({relearned[1]})", None if worst is None else f"{worst:.0%}"]


def _relearned(attacks: Attacks, unit: str) -> tuple[float, str] | None:
    """Return the largest share of the forgetting that relearning undoes, and how; None if too little was forgotten."""
    shares: list[tuple[float, str]] = []
    for variant, by_size in attacks.relearning.items():
        for size, curve in by_size.items():
            forgotten = curve[0].nll - curve[0].nll_clean
            if forgotten > MIN_FORGOTTEN:
                how = f"{size} {unit}, {variant}" if size.isdigit() else f"{variant}, asked about the {size}"
                shares.append(((curve[0].nll - min(point.nll for point in curve)) / forgotten, how))
    return max(shares, default=None)


def _came_back(results: TaskResults, method: str) -> str:
    attacks = results.attacks.get(method)
    if attacks is None:
        return "It was not attacked."
    relearned = _relearned(attacks, _unit(results))
    said = "" if relearned is None else f"Relearning ({relearned[1]}; seed 0) brings back {relearned[0]:.0%} of the forgetting."
    return f"{said} {recovery_summary(attacks.recovery)}".strip() if attacks.recovery is not None else said


def _compare_with_random(at: AtCost) -> str:
    if at.random is None:
        return ""
    if at.more_than_random is not None and max(abs(at.more_than_random.low), abs(at.more_than_random.high)) < SAME_EDIT:
        return (
            f"Matched random features make the same edit ({at.random.mean:+.3f}): the directions of so many features span the whole "
            "activation, so it does not matter which are chosen."
        )
    said = f"Matched random features behind the same gate add {at.random.mean:+.3f}"
    if at.random.mean >= at.forget.low:
        return f"{said}, so the choice of features adds nothing to the gate that can be told from chance."
    share = at.random.mean / at.forget.mean if at.forget.mean > 0 else 0.0
    return f"{said}, which is {share:.0%} of it." if share >= 0.25 else f"{said}."


def _best(results: TaskResults) -> str:
    """Name the method that comes nearest to the reference, or without one the method that adds the most loss."""
    shown = _shown(results)
    if len(shown) < 2:
        return ""
    gaps = {method: at.gap.mean for method, at in shown.items() if at.gap is not None}
    if gaps:
        best = min(gaps, key=lambda method: abs(gaps[method]))
        return f"Of {len(shown)} methods, {best} comes nearest to the reference ({gaps[best]:+.3f} nats from it)."
    best = max(shown, key=lambda method: shown[method].forget.mean)
    return f"Of {len(shown)} methods, {best} adds the most ({shown[best].forget.mean:+.3f})."
