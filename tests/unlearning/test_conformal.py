"""Test that a stated false-positive rate holds on documents that were not seen, and that simpler rules break it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mtsae_lens.data.questions import read_questions
from mtsae_lens.data.token_tables import read_tokens
from mtsae_lens.errors import DataError
from mtsae_lens.splice.evidence_gates import DecayedMeanGate
from mtsae_lens.unlearning.conformal import apart, conformal_threshold, conformal_thresholds_at, document_scores, unit

N_TRIALS = 200
RATE = 0.05
N_DOCUMENTS = 40


def documents(n: int, generator: torch.Generator) -> list[Tensor]:
    """Documents of unequal lengths, each with a level that all of its positions share, and longer ones lower."""
    lengths = torch.randint(2, 60, (n,), generator=generator).tolist()
    levels = torch.randn(n, generator=generator).tolist()
    return [
        level - length / 60 + 0.3 * torch.randn(length, generator=generator)
        for level, length in zip(levels, lengths, strict=True)
    ]


def quantile_of_positions(scores: list[Tensor], rate: float) -> float:
    return float(torch.quantile(torch.cat(scores), 1 - rate))


def quantile_of_documents(scores: list[Tensor], rate: float) -> float:
    """Every document weighs the same, but nothing is added for the new document."""
    weights = np.concatenate([np.full(len(s), 1 / len(s) / len(scores)) for s in scores])
    values = torch.cat(scores).numpy()
    order = values.argsort()
    return float(values[order][np.searchsorted(weights[order].cumsum(), 1 - rate)])


def rates_on_unseen_documents(rule: Any) -> np.ndarray:
    """The false-positive rate on 60 new documents, in each of many independent trials."""
    found = []
    for trial in range(N_TRIALS):
        generator = torch.Generator().manual_seed(trial)
        threshold = rule(documents(N_DOCUMENTS, generator), RATE)
        found.append(np.mean([(s > threshold).double().mean().item() for s in documents(60, generator)]))
    return np.array(found)


def mean_and_error(rates: np.ndarray) -> tuple[float, float]:
    return float(rates.mean()), float(rates.std(ddof=1) / len(rates) ** 0.5)


def test_the_stated_rate_holds_on_unseen_documents() -> None:
    mean, error = mean_and_error(rates_on_unseen_documents(conformal_threshold))
    assert mean <= RATE + 3 * error
    assert mean >= RATE - 2 / (N_DOCUMENTS + 1) - 3 * error  # the guarantee from below, for continuous scores


@pytest.mark.parametrize("rule", [quantile_of_positions, quantile_of_documents])
def test_the_test_finds_a_rule_that_breaks_its_rate(rule: Any) -> None:
    mean, error = mean_and_error(rates_on_unseen_documents(rule))
    assert mean > RATE + 3 * error


def test_the_threshold_by_hand() -> None:
    scores = [torch.tensor([0.0, 4.0]), torch.tensor([1.0]), torch.tensor([3.0, 2.0])]
    # (sum of shares + 1) / 4 <= rate, where shares above 3, 2, 1 are 0.5, 1, 1.5
    assert conformal_threshold(scores, 0.25) == 4.0
    assert conformal_threshold(scores, 0.374) == 4.0
    assert conformal_threshold(scores, 0.375) == 3.0
    assert conformal_threshold(scores, 0.5) == 2.0
    assert conformal_threshold([torch.ones(5)] * 20, 0.1) == 1.0  # a tie is closed as a whole
    with pytest.raises(DataError, match=r"at least 4 documents of near text for a false-positive rate of 0.2, got 3"):
        conformal_threshold(scores, 0.2)
    with pytest.raises(DataError, match=r"at least 99 documents .* of 0.01, got 0"):
        conformal_threshold([], 0.01)
    assert conformal_threshold([torch.arange(3.0)] * 99, 0.01) == 2.0


def test_scores_are_those_of_documents(lm: Any, text_file: Path) -> None:
    gate = DecayedMeanGate("activations", torch.arange(0), torch.linspace(-1, 1, 32)[None], torch.zeros(1), 0.0, 0.9)
    table = read_tokens(str(text_file), "tune", lm.cutter, 8)
    scores = document_scores(lm, gate, table)
    assert len(scores) == len({name for spans in table.all_spans for name, _ in spans})
    assert sum(map(len, scores)) == int((~lm.masked(table.tokens)).sum())
    questions = read_questions("facts:retain:known", "tune", lm.cutter, 9)
    at = questions.answers.float().argmax(dim=1) - 1  # type: ignore[union-attr]
    expected = gate.score(lm.sae_input(questions.tokens))[torch.arange(9), at]
    found = torch.cat(document_scores(lm, gate, questions))
    torch.testing.assert_close(found.sort().values, expected.sort().values)
    made = conformal_thresholds_at(lm, gate, [table, questions], [0.4, 0.6])
    kinds = (scores, document_scores(lm, gate, questions))
    assert made[0].threshold == pytest.approx(max(conformal_threshold(kind, 0.4) for kind in kinds))
    assert made[0].threshold >= made[1].threshold


def test_nobody_is_in_both_the_fit_and_the_calibration(lm: Any, text_file: Path) -> None:
    text = read_tokens(str(text_file), "tune", lm.cutter, 3)
    fitted = [read_questions("facts:retain:known", "select", lm.cutter, 400), text]
    held_out = [read_questions("facts:retain:known", "tune", lm.cutter, 400)]
    ours, theirs = apart(fitted, held_out)
    people = [set(table.pieces.documents) for table in (ours[0], theirs[0])]
    assert not people[0] & people[1]
    assert min(map(len, people)) > 50
    assert torch.equal(ours[1].tokens, text.tokens)
    assert apart([text], [text])[0] != [] or len({unit(name) for name in text.pieces.documents}) == 1


def test_a_person_is_one_unit() -> None:
    assert unit("biographies/Ada Balbury/3") == unit("Ada Balbury") == "Ada Balbury"
    assert unit("kjv/12") == "kjv/12"
