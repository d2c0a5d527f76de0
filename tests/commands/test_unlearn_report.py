"""Test the tables of one experiment with made-up numbers that are all different, so that no value can be in the wrong cell."""

from __future__ import annotations

from typing import Any

import pytest
from filled import filled

from mtsae_lens.commands.unlearn_report import effects_table, measures_table, quality_table, unlearning_summary
from mtsae_lens.unlearning.results import EditResult, UnlearningResult


def row(role: str, start: float) -> dict[str, Any]:
    values = (
        "nll_clean nll_edited nll_delta nll_delta_low nll_delta_high kl gate_open perplexity_clean perplexity_edited top1_agreement "
        "exact_memorisation extraction_strength exact_recall"
    ).split()
    numbers = {name: start + place / 10 for place, name in enumerate(values)}
    return numbers | {"role": role, "n_tokens": 100, "n_documents": 7, "nll_reference": start + 5}


@pytest.fixture
def content() -> dict[str, Any]:
    corpora = {"kjv": row("forget", 1.0), "sotu": row("far", 2.0)}
    return {
        "corpora": corpora,
        "random_control": {name: {"nll_delta": 0.31 + place} for place, name in enumerate(corpora)},
        "ladder": {
            "zero": {name: {"nll_delta": 0.41 + place} for place, name in enumerate(corpora)},
            "clamp": {name: {"nll_delta": 0.51 + place} for place, name in enumerate(corpora)},
        },
        "calibrated_nll_delta": 0.61,
        "gate": {
            "true_positives": {"positions": 0.71},
            "others": {"sotu": {"false_positives": {"positions": 0.01}, "by_position": [{"auroc": 0.81}]}},
        },
        "generation": {
            "kjv": {
                "clean": {"distinct_2": 0.91, "repeated": 0.11, "perplexity": 9.0},
                "edited": {"distinct_2": 0.92, "repeated": 0.12, "perplexity": 8.0},
            }
        },
        "reference": {"nll_gap": -0.21, "kl": 0.19, "kl_untouched": 0.18, "documents": {"ks": 0.22}},
        "truth_ratio": {"questions": {"ks": 0.23}},
    }


@pytest.fixture
def measured(content: dict[str, Any]) -> EditResult:
    return filled(EditResult, content)


def test_effects(content: dict[str, Any], measured: EditResult) -> None:
    table = effects_table(measured)
    forget, far = (dict(zip(table.header, cells, strict=True)) for cells in table.rows)
    assert forget == {
        "corpus": "kjv",
        "role": "forget",
        "NLL clean": "1.000",
        "NLL edited": "1.100",
        "change": "+1.200",
        "95% interval": "[+1.300, +1.400]",
        "KL": "1.500",
        "gate open": "160.0%",
        "random features": "+0.310",
        "zero, no gate": "+0.410",
        "edit, no gate": "+0.510",
        "reference": "+5.000",  # less the clean model's loss
        "tokens": 100,
        "documents": 7,
    }
    assert (far["random features"], far["zero, no gate"], far["edit, no gate"], far["reference"]) == (
        "+1.310",
        "+1.410",
        "+1.510",
        "+5.000",
    )
    for corpus in content["corpora"].values():
        del corpus["nll_reference"]
    assert "reference" not in effects_table(filled(EditResult, content)).header


def test_measures(measured: EditResult) -> None:
    assert list(measures_table(measured).rows[0])[:7] == ["kjv", "forget", "1.7 -> 1.8", "1.900", "2.000", "2.100", "2.200"]


def test_quality(measured: EditResult) -> None:
    table = quality_table(measured)
    assert {str(cells[0]): (cells[2], cells[3]) for cells in table.rows} == {
        "nats added to the forget text, output bias refitted": ("0", "+0.610"),
        "gate open, forget positions": ("", "0.710"),
        "gate open, sotu positions": ("", "0.0100"),
        "AUROC of the gate's score, against sotu": ("0.5", "0.810"),
        "loss minus the reference's, nats per token": ("", "-0.210"),
        "KL from the reference, nats per token, before -> after": ("", "0.180 -> 0.190"),
        "KS of losses per document, against the reference": ("", "0.220"),
        "KS of truth ratios, against the reference": ("", "0.230"),
        "distinct 2-grams of text after kjv": ("", "0.91 -> 0.92"),
        "repeated 4-grams of text after kjv": ("", "0.11 -> 0.12"),
        "perplexity, clean model of text after kjv": ("", "9.00 -> 8.00"),
    }


def test_the_summary_says_how_many_questions_are_still_answered(content: dict[str, Any]) -> None:
    of = {"chosen": {"n_features": 8}}
    assert "questions" not in unlearning_summary(filled(UnlearningResult, content | of | {"forget": "kjv"}))
    questions = "facts:forget:known"
    content["corpora"][questions] = content["corpora"].pop("kjv") | {"exact_recall": 0.087}
    content["random_control"][questions] = content["random_control"].pop("kjv")
    summary = unlearning_summary(filled(UnlearningResult, content | of | {"forget": questions}))
    assert " 9% of its questions are still answered. " in summary


def test_the_summary_says_that_random_features_make_the_same_edit(content: dict[str, Any]) -> None:
    content["random_control"]["kjv"] |= {"nll_delta": 1.2, "nll_delta_min": 1.2, "nll_delta_max": 1.20004}
    summary = unlearning_summary(filled(UnlearningResult, content | {"forget": "kjv", "chosen": {"n_features": 8}}))
    assert summary.endswith(
        "Matched random features make the same edit (+1.200): the directions of so many features span the whole activation, so it does not "
        "matter which are chosen."
    )


@pytest.mark.parametrize(
    ("n_positions", "row"),
    [(40, "gate open where answers begin, {}"), (360, "gate open, {} positions")],
    ids=["now", "earlier"],
)
def test_the_gate_of_questions_is_reported_where_it_was_asked(content: dict[str, Any], n_positions: int, row: str) -> None:
    """Results of earlier versions count every position of a question."""
    asked = {"n_positions": n_positions, "n_contexts": 40}
    content["gate"] = {
        "true_positives": {"positions": 0.71} | asked,
        "others": {
            "facts:retain:known": {"false_positives": {"positions": 0.01} | asked, "by_position": [{"auroc": 0.81}]},
            "sotu": {"false_positives": {"positions": 0.02} | asked, "by_position": [{"auroc": 0.82}]},
        },
    }
    content["corpora"]["facts:forget:known"] = content["corpora"].pop("kjv")
    values = {str(cells[0]): cells[3] for cells in quality_table(filled(EditResult, content)).rows}
    assert values[row.format("forget")] == "0.710"
    assert values[row.format("facts:retain:known")] == "0.0100"
    assert values["gate open, sotu positions"] == "0.0200"


@pytest.mark.parametrize(
    ("random", "said"),
    [
        (1.35, "add +1.350, so the choice of features adds nothing to the gate that can be told from chance."),
        (0.60, "add +0.600, which is 50% of it."),
        (0.10, "add +0.100."),
    ],
)
def test_the_summary_says_what_random_features_do(content: dict[str, Any], random: float, said: str) -> None:
    content["random_control"]["kjv"]["nll_delta"] = random
    summary = unlearning_summary(filled(UnlearningResult, content | {"forget": "kjv", "chosen": {"n_features": 8}}))
    assert summary.startswith(
        "Unlearned: editing 8 features adds +1.200 nats per token to the loss on kjv (95% interval +1.300"
    )
    assert "at a cost of +2.2000 nats on the far text whose loss rises most (sotu)." in summary
    assert summary.endswith(f"Matched random features behind the same gate {said}")
