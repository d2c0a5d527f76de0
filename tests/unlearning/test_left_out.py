"""Test thresholds on people whom the gate was not fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from mtsae_lens.data.questions import read_questions
from mtsae_lens.data.token_tables import TokenTable, read_tokens
from mtsae_lens.errors import DataError
from mtsae_lens.splice.evidence_gates import DecayedMeanGate
from mtsae_lens.unlearning.candidates import fit_gates
from mtsae_lens.unlearning.conformal import split_by_unit
from mtsae_lens.unlearning.gate_kinds import GateChoice
from mtsae_lens.unlearning.gating import scores_to_keep, thresholds_at
from mtsae_lens.unlearning.left_out import N_FOLDS, left_out_thresholds_at
from mtsae_lens.unlearning.task import Corpus, Task

GATE = DecayedMeanGate("activations", torch.arange(0), torch.linspace(-1, 1, 32)[None], torch.zeros(1), 0.0, 0.9)


def questions(lm: Any, split: Any, source: str = "facts:retain/12:known") -> TokenTable:
    return read_questions(source, split, lm.cutter, 10_000)


def test_each_person_is_scored_by_a_gate_that_was_fitted_without_them(lm: Any) -> None:
    """The gate of a fold adds 100 for each fold before it, so that the scores say which gate gave them."""
    left_out: list[set[str]] = []

    def refit(rest: Sequence[TokenTable]) -> DecayedMeanGate:
        left_out.append(set(questions(lm, "select").documents) - set(rest[0].documents))
        return replace(GATE, bias=torch.tensor([100.0 * len(left_out)]))

    calibration = questions(lm, "tune")
    (made,) = left_out_thresholds_at(lm, GATE, refit, [questions(lm, "select")], [calibration], [0.25])
    assert len(left_out) == N_FOLDS
    assert sorted(name for fold in left_out for name in fold) == sorted(set(calibration.documents))
    expected = [
        scores_to_keep(lm, GATE, split_by_unit(calibration, fold)[0]) + 100 * (place + 1)  # type: ignore[arg-type]
        for place, fold in enumerate(left_out)
    ]
    assert made.threshold == pytest.approx(torch.quantile(torch.cat(expected), 0.75).item(), abs=1e-3)


def test_text_that_was_not_fitted_is_scored_by_the_gate_itself(lm: Any, text_file: Any) -> None:
    def refuse(rest: Any) -> Any:
        raise AssertionError("nothing is shared, so nothing is fitted again")

    text = [read_tokens(str(text_file), "tune", lm.cutter, 8)]
    fitted = [questions(lm, "select", "facts:retain/3:known")]
    expected = thresholds_at(lm, GATE, text, [0.1, 0.5])
    assert left_out_thresholds_at(lm, GATE, refuse, fitted, text, [0.1, 0.5]) == expected


def test_one_person_cannot_be_left_out(lm: Any) -> None:
    tables = [questions(lm, split, "facts:retain/1:known") for split in ("select", "tune")]
    with pytest.raises(DataError, match=r"expected several people to keep, got .*; ask about more"):
        left_out_thresholds_at(lm, GATE, lambda rest: GATE, tables[:1], tables[1:], [0.1])


def test_a_gate_of_known_groups_opens_on_fewer_strangers(lm: Any) -> None:
    corpora = (Corpus("facts:forget/8:known", "forget"), Corpus("facts:retain/12:known", "near"), Corpus("sotu", "far"))
    thresholds = {}
    for rule in ("quantile", "left_out"):
        choice = GateChoice("known_groups_activations", threshold=rule)  # type: ignore[arg-type]
        thresholds[rule] = fit_gates(lm, Task(corpora, 8), (0.2,), choice)[0.2].threshold  # type: ignore[attr-defined]
    assert thresholds["left_out"] > thresholds["quantile"]
