"""Report one unlearning experiment as tables and sections of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtsae_lens.commands.recovery_report import recovery_section, recovery_summary
from mtsae_lens.data.questions import is_question_source
from mtsae_lens.reporting.figures import effect_bars, sweep_scatter
from mtsae_lens.reporting.page import Section, Table
from mtsae_lens.reporting.samples import sample_table
from mtsae_lens.splice.edit_interface import SUPPRESSION
from mtsae_lens.unlearning.measures.gate_quality import OpenShare
from mtsae_lens.unlearning.results import SAME_EDIT, EditResult, GenerationComparison, UnlearningResult

BEFORE_AND_AFTER = "Before and after"


def effects_table(measured: EditResult) -> Table:
    """Make the table of losses: one row per corpus, with the edit, its interval, the random control and the reference.

    Args:
        measured: the results.
    """
    has_reference = any(row.nll_reference is not None for row in measured.corpora.values())
    header = [
        "corpus",
        "role",
        "NLL clean",
        "NLL edited",
        "change",
        "95% interval",
        "KL",
        "gate open",
        "random features",
        "zero, no gate",
        "edit, no gate",
    ]
    rows = []
    for name, row in measured.corpora.items():
        cells: list[Any] = [
            name,
            row.role,
            f"{row.nll_clean:.3f}",
            f"{row.nll_edited:.3f}",
            f"{row.nll_delta:+.3f}",
            row.change.ends,
            f"{row.kl:.3f}",
            f"{100 * row.gate_open:.1f}%",
            f"{measured.random_control[name].nll_delta:+.3f}",
            f"{measured.baselines['zero'][name].nll_delta:+.3f}",
            f"{measured.baselines['clamp'][name].nll_delta:+.3f}",
        ]
        if has_reference:
            cells.append(None if row.nll_reference is None else f"{row.nll_reference - row.nll_clean:+.3f}")
        rows.append([*cells, row.n_tokens, row.n_documents])
    return Table([*header, *(["reference"] if has_reference else []), "tokens", "documents"], rows)


def measures_table(measured: EditResult) -> Table:
    """Make the table of all other measures on every corpus, as before -> after if a measure belongs to one model.

    Args:
        measured: the results.
    """
    header = ["corpus", "role", "perplexity", "top-1 agreement", "exact memorization", "extraction strength", "exact recall"]
    header += ["tokens", "documents"]
    rows = [
        [
            name,
            row.role,
            f"{row.perplexity_clean:.1f} -> {row.perplexity_edited:.1f}",
            f"{row.top1_agreement:.3f}",
            f"{row.exact_memorisation:.3f}",
            f"{row.extraction_strength:.3f}",
            f"{row.exact_recall:.3f}",
            row.n_tokens,
            row.n_documents,
        ]
        for name, row in measured.corpora.items()
    ]
    return Table(header, rows)


_MEASURES = (
    "On text to keep, no change is best for all measures. On forget text: Perplexity, before -> after: higher is more forgetting. Top-1 "
    "agreement: share of positions at which the most likely token is the same as before (1: no change). Exact memorization: share of "
    "tokens that the edited model predicts exactly; the goal is not 0 but the value of a model that never saw the text, which still "
    "predicts common tokens. Extraction strength: share of a text that greedy decoding gives from the part before it; lower is more "
    "forgetting. Exact recall: share of texts, or of questions, that greedy decoding gives completely; lower is more forgetting."
)


def quality_table(measured: EditResult) -> Table:
    """Make the table of measures other than losses on given text: gate, calibration, generations, distance to the reference.

    Args:
        measured: the results.
    """
    rows: list[Sequence[Any]] = [
        ["nats added to the forget text, output bias refitted", "higher", "0", f"{measured.calibrated_nll_delta:+.3f}"],
    ]
    if measured.gate is not None:
        opened = measured.gate.true_positives
        rows.append([_open_where("forget", measured.forget, opened), "higher", "", f"{opened.positions:.3f}"])
        for row in measured.gate.detection:
            place = f"after {row.after} tokens" if row.after else "where answers begin"
            name = f"forget contexts recognized {place}, at 1% false positives"
            rows.append([name, "higher", "0.01", f"{row.rate:.2f} {row.share.ends}"])
        for name, other in measured.gate.others.items():
            opened = other.false_positives
            rows.append([_open_where(name, name, opened), "lower", "", f"{opened.positions:.4f}"])
            rows.append([f"AUROC of the gate's score, against {name}", "higher", "0.5", f"{other.by_position[0].auroc:.3f}"])
    if measured.reference is not None:
        rows.append(["loss minus the reference's, nats per token", "0", "", f"{measured.reference.nll_gap:+.3f}"])
        if measured.reference.kl_untouched is not None:
            change = f"{measured.reference.kl_untouched:.3f} -> {measured.reference.kl:.3f}"
            rows.append(["KL from the reference, nats per token, before -> after", "0", "", change])
        rows.append(["KS of losses per document, against the reference", "0", "", f"{measured.reference.documents.ks:.3f}"])
    if measured.truth_ratio is not None:
        rows.append(["KS of truth ratios, against the reference", "0", "", f"{measured.truth_ratio.questions.ks:.3f}"])
    for name, health in measured.generation.items():
        rows += _generation_rows(name, health, "varied" if name == measured.forget else "as before")
    return Table(["measure", "better", "chance", "value"], rows)


def _open_where(name: str, source: str, opened: OpenShare) -> str:
    """Name the share of open positions of a corpus by the positions that were counted."""
    at_answers = is_question_source(source) and opened.is_of_answers
    return f"gate open where answers begin, {name}" if at_answers else f"gate open, {name} positions"


def _generation_rows(name: str, health: GenerationComparison, better: str) -> list[Sequence[Any]]:
    clean, edited = health.clean, health.edited
    values = {
        "distinct 2-grams": (clean.distinct_2, edited.distinct_2),
        "repeated 4-grams": (clean.repeated, edited.repeated),
        "perplexity, clean model": (clean.perplexity, edited.perplexity),
    }
    return [
        [f"{measure} of text after {name}", better, "", f"{before:.2f} -> {after:.2f}"]
        for measure, (before, after) in values.items()
    ]


def _counted(measured: EditResult) -> str:
    counts = (f"{name} {row.n_tokens:,} tokens of {row.n_documents} documents" for name, row in measured.corpora.items())
    return f"n: {', '.join(counts)}."


def unlearning_summary(measured: UnlearningResult) -> str:
    """Describe in words what was forgotten, at what cost, whether matched random features forget as much, and what an attack brings back.

    Args:
        measured: the results.
    """
    row = measured.corpora[measured.forget]
    said = (
        f"Unlearned: editing {measured.chosen.n_features} features adds {row.nll_delta:+.3f} nats per token to the loss on "
        f"{measured.forget} (95% interval {row.nll_delta_low:+.3f} to {row.nll_delta_high:+.3f}), at a cost of {_cost(measured)}"
    )
    if row.nll_reference is not None:
        goal = row.nll_reference - row.nll_clean
        share = f", so the edit reaches {row.nll_delta / goal:.0%} of that" if goal > 0 else ""
        said += f". A model that never saw the text has {goal:+.3f}{share}"
    recovered = "" if measured.recovery is None else f" {recovery_summary(measured.recovery)}"
    asked = f" {row.exact_recall:.0%} of its questions are still answered." if is_question_source(measured.forget) else ""
    return f"{said}.{asked} {_compare_with_random(measured)}.{recovered}"


def _compare_with_random(measured: UnlearningResult) -> str:
    """Say how much matched random features behind the same gate forget, and what that says about the choice of features."""
    row, drawn = measured.corpora[measured.forget], measured.random_control[measured.forget]
    random = drawn.nll_delta
    if max(abs(of - row.nll_delta) for of in (drawn.nll_delta_min, drawn.nll_delta_max)) < SAME_EDIT:
        return (
            f"Matched random features make the same edit ({random:+.3f}): the directions of so many features span the whole activation, so it "
            "does not matter which are chosen"
        )
    said = f"Matched random features behind the same gate add {random:+.3f}"
    if random >= row.nll_delta_low:
        return f"{said}, so the choice of features adds nothing to the gate that can be told from chance"
    if row.nll_delta > 0 and random >= row.nll_delta / 4:
        return f"{said}, which is {random / row.nll_delta:.0%} of it"
    return said


def _cost(measured: EditResult) -> str:
    """Name the near text and the far text whose loss rises most, and by how much it rises."""
    costs = []
    for role in ("near", "far"):
        deltas = {name: row.nll_delta for name, row in measured.corpora.items() if row.role == role}
        if deltas:
            worst = max(deltas, key=lambda name: deltas[name])
            costs.append(f"{deltas[worst]:+.4f} nats on the {role} text whose loss rises most ({worst})")
    return ", ".join(costs) or "not measured"


def unlearning_sections(measured: UnlearningResult, budgets: Mapping[str, float]) -> list[Section]:
    """Make the sections of a report on one experiment.

    Args:
        measured: what was chosen and measured.
        budgets: largest increase of the loss on retain text in nats per token, by role (`near` and `far`).
    """
    chosen = measured.chosen
    strength = "" if chosen.multiplier is None else f", m = {chosen.multiplier:g}"
    removed = f"; and {chosen.error_rank} directions of the SAE's error are removed" if chosen.error_rank else ""
    control = next(iter(measured.random_control.values()))
    text = (
        f"The edit: {chosen.n_features} features, {chosen.edit}{strength}{removed}, {chosen.gate}. It was chosen on SELECT and TUNE, "
        "and measured once on TEST. Change: nats added per token to the loss of the clean model; intervals resample documents. On forget text "
        "more is more forgetting, up to the reference; on other text 0 is best. Random features: mean of "
        f"{control.n_draws} draws of features with the same firing rate and strength, edited in the same way behind the same gate. Without an "
        f"edit, the splice changes the logits by at most {measured.identity_error:.1e}. {SUPPRESSION}"
    )
    methods = {
        "the edit": {name: row.change for name, row in measured.corpora.items()},
        "matched random features": {name: row.change for name, row in measured.random_control.items()},
        "zero ablation, no gate": {name: row.change for name, row in measured.baselines["zero"].items()},
    }
    sweep_text = (
        "Each point is one choice of features, multiplier and gate. Up is more forgetting, and left is less cost, on a logarithmic axis. "
        "Dashed lines are the budgets."
    )
    sections = [
        Section("Unlearning", text, table=effects_table(measured), figure=effect_bars(methods, [measured.forget])),
        Section("What else changed", _MEASURES, table=measures_table(measured)),
        Section(
            "Gate, generations, reference",
            f"Generated text is greedy; values are before -> after. {_counted(measured)}",
            table=quality_table(measured),
        ),
    ]
    if measured.recovery is not None:
        sections.append(recovery_section("What comes back under attack", {"the edit": measured.recovery}))
    if measured.samples:
        lead = "Beginnings of held-out texts, continued greedily without and with the edit."
        sections.append(Section(BEFORE_AND_AFTER, lead, html=sample_table(measured.samples)))
    sections.append(Section("What was tried on TUNE", sweep_text, figure=sweep_scatter(measured.tune_sweep, budgets)))
    return sections
