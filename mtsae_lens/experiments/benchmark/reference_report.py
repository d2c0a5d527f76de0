"""Write the report's section on one edit of every method in full, compared with the untouched model and the reference."""

from __future__ import annotations

from typing import Any

from mtsae_lens.data.questions import is_question_source
from mtsae_lens.experiments.benchmark.arms import MAIN_BUDGET
from mtsae_lens.experiments.benchmark.task_results import TaskResults
from mtsae_lens.reporting.page import Section, Table
from mtsae_lens.unlearning.measures.gate_quality import GateQuality
from mtsae_lens.unlearning.results import FurtherMeasures

_TEXT = (
    "A model can have the loss of a model that never saw the text without being similar to it. This table measures the similarity, for "
    "seed 0 and the setting within {budget:g} nats whose loss on TUNE is nearest to the reference's. The first two rows are the model "
    "before any change, and the reference itself. Gap: loss minus the reference's loss (0 is best; above 0 is damage). KS: Kolmogorov-"
    "Smirnov distance between the losses of the two models per document (0 is best). KL: from the reference's predictions to the model's, "
    "in nats per token (0 is best). Calibrated: nats added after an output bias is refitted, so that shifted logits do not count (the "
    "reference's value is best).{truth} Gate: share of forget {places} at which it is open (1 is best), and the lowest AUROC of its "
    "score against a near text (1 is best, chance is 0.5). Distinct-2 and repeated 4-grams: of greedy text after the forget prompts, "
    "before -> after. Perplexity: of greedy text after near prompts, under the clean model, before -> after (no change is best). n: {n}."
)
_TRUTH = (
    " Truth ratio: the odds of wrong answers; KS distance to the reference's (0 is best), and the median of their logarithm (above 0, wrong "
    "answers are more likely)."
)


def reference_section(results: TaskResults) -> Section:
    """Make the section on the setting nearest to the reference, measured in full, with one row per method.

    Args:
        results: results of one task.
    """
    asked = is_question_source(results.task.forget)
    known = {} if results.reference is None else {"untouched": results.reference.untouched, "reference": results.reference.main}
    n_tokens = results.test_tokens[results.task.forget]
    at_answers = asked and all(main.gate.true_positives.is_of_answers for main in results.mains.values() if main.gate)
    places = "positions where an answer begins" if at_answers else "positions"
    text = _TEXT.format(
        budget=MAIN_BUDGET, truth=_TRUTH if asked else "", places=places, n=f"seed 0, {n_tokens:,} forget tokens"
    )
    header = ["method", "gap", "KS", "KL", "calibrated", *(["truth ratio KS", "median"] * asked)]
    header += ["gate open", "gate AUROC", "distinct-2", "repeated", "perplexity, near"]
    table = Table(header, [_row(name, main, results, asked=asked) for name, main in (known | results.mains).items()])
    return Section(f"{results.name}: similarity to the reference", text, table)


def _row(method: str, main: FurtherMeasures, results: TaskResults, *, asked: bool) -> list[Any]:
    distance, gate, truth = main.reference, main.gate, main.truth_ratio
    near, written = results.task.sources("near"), main.generation.get(results.task.forget)
    cells: list[Any] = [method]
    cells += [f"{distance.nll_gap:+.3f}", f"{distance.documents.ks:.2f}", f"{distance.kl:.3f}"] if distance else [None] * 3
    cells += [f"{main.calibrated_nll_delta:+.3f}"]
    if asked:
        cells += [f"{truth.questions.ks:.2f}", f"{truth.median_log_ratio_edited:+.2f}"] if truth else [None, None]
    cells += [f"{gate.true_positives.positions:.0%}", _lowest_auroc(gate, near)] if gate else [None, None]
    if written is None:
        cells += [None, None]
    else:
        cells.append(_before_after(written.clean.distinct_2, written.edited.distinct_2))
        cells.append(_before_after(written.clean.repeated, written.edited.repeated))
    beside = main.generation.get(near[0]) if near else None
    return [*cells, None if beside is None else _before_after(beside.clean.perplexity, beside.edited.perplexity)]


def _lowest_auroc(gate: GateQuality, near: list[str]) -> str | None:
    found = [gate.others[source].by_position[0].auroc for source in near if source in gate.others]
    return f"{min(found):.3f}" if found else None


def _before_after(before: float, after: float) -> str:
    return f"{before:.2f} -> {after:.2f}"
