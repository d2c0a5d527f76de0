"""Report one unlearning experiment as tables and sections of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtsae_lens.reporting.figures import effect_bars, sweep_scatter
from mtsae_lens.reporting.page import Section, Table
from mtsae_lens.reporting.samples import sample_table
from mtsae_lens.splice.edits import SUPPRESSION
from mtsae_lens.unlearning.results import EditResult, GenerationComparison, UnlearningResult

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
        "zero",
        "clamp, no gate",
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
    "Perplexity: on forget text higher is more forgetting, on other text no change is best. Top-1 agreement: share "
    "of tokens whose likeliest token "
    "stayed (1 if nothing changed). Exact memorization: share of tokens that the edited model predicts exactly "
    "(a model that never saw the text still predicts its commoner tokens: the goal is its value, not 0). "
    "Extraction strength: share of a text that greedy decoding gives from what is before it (0 to 1). Exact recall: "
    "share of texts, or of questions, given whole. "
    "Of the last three, on forget text lower is more forgetting."
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
        rows.append(["gate open, forget positions", "higher", "", f"{measured.gate.true_positives.positions:.3f}"])
        for name, other in measured.gate.others.items():
            rows.append([f"gate open, {name} positions", "lower", "", f"{other.false_positives.positions:.4f}"])
            rows.append([f"AUROC of the gate's score, against {name}", "higher", "0.5", f"{other.by_position[0].auroc:.3f}"])
    if measured.reference is not None:
        rows.append(["loss less the reference's, nats per token", "0", "", f"{measured.reference.nll_gap:+.3f}"])
        rows.append(["KS of losses per document, against the reference", "0", "", f"{measured.reference.documents.ks:.3f}"])
    if measured.truth_ratio is not None:
        rows.append(["KS of truth ratios, against the reference", "0", "", f"{measured.truth_ratio.questions.ks:.3f}"])
    for name, health in measured.generation.items():
        rows += _generation_rows(name, health, "varied" if name == measured.forget else "as before")
    return Table(["measure", "better", "chance", "value"], rows)


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
    """Describe in words what was forgotten, how far the reference is away, and how much other text is affected.

    Args:
        measured: the results.
    """
    row = measured.corpora[measured.forget]
    said = (
        f"Unlearned: editing {measured.chosen.n_features} features adds {row.nll_delta:+.3f} nats per token to the loss on "
        f"{measured.forget} (95% interval {row.nll_delta_low:+.3f} to {row.nll_delta_high:+.3f}); random features add "
        f"{measured.random_control[measured.forget].nll_delta:+.3f}"
    )
    if row.nll_reference is not None:
        goal = row.nll_reference - row.nll_clean
        share = f", so the edit goes {row.nll_delta / goal:.0%} of the way" if goal > 0 else ""
        said += f", and a model that never saw it is {goal:+.3f} away{share}"
    return f"{said}. Price: {_price(measured)}."


def _price(measured: EditResult) -> str:
    """Name the near text and the far text that are affected most, and by how much."""
    prices = []
    for role in ("near", "far"):
        deltas = {name: row.nll_delta for name, row in measured.corpora.items() if row.role == role}
        if deltas:
            worst = max(deltas, key=lambda name: deltas[name])
            prices.append(f"{deltas[worst]:+.4f} nats on the {role} text that loses most ({worst})")
    return ", ".join(prices) or "not measured"


def unlearning_sections(measured: UnlearningResult, budgets: Mapping[str, float]) -> list[Section]:
    """Make the sections of a report on one experiment.

    Args:
        measured: what was chosen and measured.
        budgets: largest increase of the loss on retain text in nats per token, by role (`near` and `far`).
    """
    chosen = measured.chosen
    strength = "" if chosen.multiplier is None else f", m = {chosen.multiplier:g}"
    control = next(iter(measured.random_control.values()))
    text = (
        f"{chosen.n_features} features, {chosen.edit}{strength}, where the gate is open; chosen on SELECT and TUNE, "
        "measured once on TEST. Change in nats per token against the clean model; intervals resample documents. Random: "
        f"{control.n_draws} draws of features matched in firing rate and strength, same gate and multiplier. Identity without an edit: "
        f"logits within {measured.identity_error:.1e}. {SUPPRESSION}"
    )
    methods = {
        "gated clamp": {name: row.change for name, row in measured.corpora.items()},
        "matched random features": {name: row.change for name, row in measured.random_control.items()},
        "zero ablation": {name: row.change for name, row in measured.baselines["zero"].items()},
    }
    sweep_text = "Each point is a choice of features, a multiplier and a gate; dashed lines are the budgets. Cost is on a logarithmic axis."
    sections = [
        Section("Unlearning", text, table=effects_table(measured), figure=effect_bars(methods, [measured.forget])),
        Section("What else changed", _MEASURES, table=measures_table(measured)),
        Section(
            "Gate, generations, reference", f"Greedy text; before -> after. {_counted(measured)}", table=quality_table(measured)
        ),
    ]
    if measured.samples:
        lead = "Starts of held-out texts, continued greedily without the edit and with it."
        sections.append(Section(BEFORE_AND_AFTER, lead, html=sample_table(measured.samples)))
    sections.append(Section("What was tried on TUNE", sweep_text, figure=sweep_scatter(measured.tune_sweep, budgets)))
    return sections
