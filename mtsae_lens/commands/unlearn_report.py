"""The outcome of one unlearning experiment as tables and sections of a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtsae_lens.reporting.figures import effect_bars, sweep_scatter
from mtsae_lens.reporting.page import Section, Table
from mtsae_lens.reporting.samples import sample_table
from mtsae_lens.splice.edits import SUPPRESSION

BEFORE_AND_AFTER = "Before and after"


def effects_table(measured: dict[str, Any]) -> Table:
    """One row per corpus: the edit, its interval, random control, reference."""
    has_reference = any("nll_reference" in row for row in measured["corpora"].values())
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
    for name, row in measured["corpora"].items():
        cells = [
            name,
            row["role"],
            f"{row['nll_clean']:.3f}",
            f"{row['nll_edited']:.3f}",
            f"{row['nll_delta']:+.3f}",
            f"[{row['nll_delta_low']:+.3f}, {row['nll_delta_high']:+.3f}]",
            f"{row['kl']:.3f}",
            f"{100 * row['gate_open']:.1f}%",
            f"{measured['random_control'][name]['nll_delta']:+.3f}",
            f"{measured['ladder']['zero'][name]['nll_delta']:+.3f}",
            f"{measured['ladder']['clamp'][name]['nll_delta']:+.3f}",
        ]
        if has_reference:
            cells.append(f"{row['nll_reference'] - row['nll_clean']:+.3f}")
        rows.append([*cells, row["n_tokens"], row["n_documents"]])
    return Table([*header, *(["reference"] if has_reference else []), "tokens", "documents"], rows)


def measures_table(measured: dict[str, Any]) -> Table:
    """Every measure of the edit on every corpus, before -> after where a measure belongs to a model."""
    header = ["corpus", "role", "perplexity", "top-1 agreement", "exact memorisation", "extraction strength", "exact recall"]
    header += ["tokens", "documents"]
    rows = [
        [
            name,
            row["role"],
            f"{row['perplexity_clean']:.1f} -> {row['perplexity_edited']:.1f}",
            *(f"{row[key]:.3f}" for key in ("top1_agreement", "exact_memorisation", "extraction_strength", "exact_recall")),
            row["n_tokens"],
            row["n_documents"],
        ]
        for name, row in measured["corpora"].items()
    ]
    return Table(header, rows)


_MEASURES = (
    "Perplexity: on forget text higher is more forgetting, on other text no change is best. Top-1 agreement: share "
    "of tokens whose likeliest token "
    "stayed (1 if nothing changed). Exact memorisation: share of tokens that the edited model predicts exactly "
    "(a model that never saw the text still predicts its commoner tokens: the goal is its value, not 0). "
    "Extraction strength: share of a text that greedy decoding gives from what is before it (0 to 1). Exact recall: "
    "share of texts, or of questions, given whole. "
    "Of the last three, on forget text lower is more forgetting."
)


def quality_table(measured: dict[str, Any]) -> Table:
    """What is not a loss on given text: the gate, calibration, generations, the distance to the reference."""
    forget = next(name for name, row in measured["corpora"].items() if row["role"] == "forget")
    gate = measured["gate"]
    rows: list[list[Any]] = [
        ["nats added to the forget text, output bias refitted", "higher", "0", f"{measured['calibrated_nll_delta']:+.3f}"],
        ["gate open, forget positions", "higher", "", f"{gate['true_positives']['positions']:.3f}"],
    ]
    for name, other in gate["others"].items():
        rows.append([f"gate open, {name} positions", "lower", "", f"{other['false_positives']['positions']:.4f}"])
        rows.append([f"AUROC of the gate's score, against {name}", "higher", "0.5", f"{other['by_position'][0]['auroc']:.3f}"])
    if "reference" in measured:
        reference = measured["reference"]
        rows.append(["loss less the reference's, nats per token", "0", "", f"{reference['nll_gap']:+.3f}"])
        rows.append(["KS of losses per document, against the reference", "0", "", f"{reference['documents']['ks']:.3f}"])
    if "truth_ratio" in measured:
        rows.append(["KS of truth ratios, against the reference", "0", "", f"{measured['truth_ratio']['questions']['ks']:.3f}"])
    for name, health in measured["generation"].items():
        better = "varied" if name == forget else "as before"
        for key, words in (
            ("distinct_2", "distinct 2-grams"),
            ("repeated", "repeated 4-grams"),
            ("perplexity", "perplexity, clean model"),
        ):
            rows.append(
                [f"{words} of text after {name}", better, "", f"{health['clean'][key]:.2f} -> {health['edited'][key]:.2f}"]
            )
    return Table(["measure", "better", "chance", "value"], rows)


def _counted(measured: dict[str, Any]) -> str:
    counts = (
        f"{name} {row['n_tokens']:,} tokens of {row['n_documents']} documents" for name, row in measured["corpora"].items()
    )
    return f"n: {', '.join(counts)}."


def unlearning_summary(measured: dict[str, Any]) -> str:
    """Say in words what was forgotten, how far a model that never saw it is, and what other text paid.

    Args:
        measured: what `unlearn` returns.
    """
    forget = next(name for name, row in measured["corpora"].items() if row["role"] == "forget")
    row, chosen = measured["corpora"][forget], measured["chosen"]
    told = (
        f"Unlearned: editing {chosen['n_features']} features adds {row['nll_delta']:+.3f} nats per token to the loss on {forget} "
        f"(95% interval {row['nll_delta_low']:+.3f} to {row['nll_delta_high']:+.3f}); random features add "
        f"{measured['random_control'][forget]['nll_delta']:+.3f}"
    )
    if "nll_reference" in row:
        goal = row["nll_reference"] - row["nll_clean"]
        share = f", so the edit goes {row['nll_delta'] / goal:.0%} of the way" if goal > 0 else ""
        told += f", and a model that never saw it is {goal:+.3f} away{share}"
    return f"{told}. Price: {_price(measured)}."


def _price(measured: dict[str, Any]) -> str:
    """What the text lost that lost most, near and far."""
    prices = []
    for role in ("near", "far"):
        deltas = {name: row["nll_delta"] for name, row in measured["corpora"].items() if row["role"] == role}
        if deltas:
            worst = max(deltas, key=lambda name: deltas[name])
            prices.append(f"{deltas[worst]:+.4f} nats on the {role} text that loses most ({worst})")
    return ", ".join(prices) or "not measured"


def unlearning_sections(measured: dict[str, Any], budgets: Mapping[str, float]) -> list[Section]:
    """The experiment as sections of a report; `budgets` by role."""
    chosen = measured["chosen"]
    strength = "" if chosen["multiplier"] is None else f", m = {chosen['multiplier']:g}"
    control = next(iter(measured["random_control"].values()))
    forget = [name for name, row in measured["corpora"].items() if row["role"] == "forget"]
    text = (
        f"{chosen['n_features']} features, {chosen['edit']}{strength}, where the gate is open; chosen on SELECT and TUNE, "
        "measured once on TEST. Change in nats per token against the clean model; intervals resample documents. Random: "
        f"{control['n_draws']} draws of features matched in firing rate and strength, same gate and multiplier. Identity without an edit: "
        f"logits within {measured['identity_error']:.1e}. {SUPPRESSION}"
    )
    methods = {
        "gated clamp": measured["corpora"],
        "matched random features": measured["random_control"],
        "zero ablation": measured["ladder"]["zero"],
    }
    sweep_text = "Each point is a choice of features, a multiplier and a gate; dashed lines are the budgets. Cost is on a logarithmic axis."
    sections = [
        Section("Unlearning", text, table=effects_table(measured), figure=effect_bars(methods, forget)),
        Section("What else changed", _MEASURES, table=measures_table(measured)),
        Section(
            "Gate, generations, reference", f"Greedy text; before -> after. {_counted(measured)}", table=quality_table(measured)
        ),
    ]
    if measured["samples"]:
        lead = "Starts of held-out texts, continued greedily without the edit and with it."
        sections.append(Section(BEFORE_AND_AFTER, lead, html=sample_table(measured["samples"])))
    sections.append(Section("What was tried on TUNE", sweep_text, figure=sweep_scatter(measured["tune_sweep"], budgets)))
    return sections
