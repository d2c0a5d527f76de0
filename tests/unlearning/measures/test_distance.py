"""Test the distance to the reference: 0 from itself, the sign, and truth ratios against single questions."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mtsae_lens.data.questions import read_questions, read_wrong_answers
from mtsae_lens.data.token_tables import TokenTable, read_tokens
from mtsae_lens.errors import DataError
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.measures.distance import distance_to_reference, log_truth_ratios, truth_ratio_distance, two_sample
from mtsae_lens.unlearning.measures.effects import as_logits, edited_logits

FORGET = "facts:forget:known"


@pytest.fixture(scope="module")
def table(lm: HookedLM, text_file: Path) -> TokenTable:
    found = read_tokens(str(text_file), "test", lm.cutter, 6)
    return dataclasses.replace(found, documents=("a", "b", "a", "c", "d", "b"))


@pytest.fixture(scope="module")
def edited(lm: HookedLM) -> Any:
    return edited_logits(lm, FeatureEdit(tuple(range(lm.sae.cfg.d_sae)), 4.0))


def naive_ks(one: Tensor, other: Tensor) -> float:
    """Largest gap between two empirical distribution functions, at every value."""
    return max(abs((one <= value).float().mean() - (other <= value).float().mean()).item() for value in torch.cat([one, other]))


def test_ks_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(30, generator=generator), 1 + torch.randn(30, generator=generator)
    found = two_sample(one, other)
    assert found.ks == pytest.approx(naive_ks(one, other))
    assert found.p_value < 0.01
    assert found.n == 30
    assert two_sample(one.exp(), other.exp()) == found  # blind to the scale
    assert two_sample(one, one.flip(0)) == two_sample(one, one)  # and to the order
    assert (two_sample(one, one).ks, two_sample(one, one).p_value) == (0.0, 1.0)
    assert two_sample(one, one + 100).ks == 1.0


def test_the_reference_is_no_distance_from_itself(lm: HookedLM, table: TokenTable, edited: Any) -> None:
    itself = distance_to_reference(as_logits(lm.model), lm.model, lm.cutter, table)
    assert (itself.nll_gap, itself.documents.ks, itself.documents.p_value) == (0.0, 0.0, 1.0)
    assert itself.kl == pytest.approx(0, abs=1e-6)
    other = distance_to_reference(edited, lm.model, lm.cutter, table)
    assert other.nll_gap != 0
    assert other.documents.ks > 0
    assert other.kl > 1e-3


def test_gap_and_divergence_token_by_token(lm: HookedLM, table: TokenTable, edited: Any) -> None:
    found = distance_to_reference(edited, lm.model, lm.cutter, table, batch_size=4)
    ours, theirs = (model(table.tokens).log_softmax(-1)[:, :-1] for model in (edited, as_logits(lm.model)))
    targets = table.tokens[:, 1:, None]
    n = targets.numel()
    our_nll, their_nll = (-p.gather(-1, targets).squeeze(-1) for p in (ours, theirs))
    assert found.n_tokens == n
    assert found.nll_edited == pytest.approx(our_nll.mean().item(), abs=1e-4)
    assert found.nll_gap == pytest.approx((our_nll - their_nll).mean().item(), abs=1e-4)
    assert found.kl == pytest.approx((theirs.exp() * (theirs - ours)).sum(-1).mean().item(), abs=1e-4)
    turned = (ours.exp() * (ours - theirs)).sum(-1).mean().item()
    assert abs(found.kl - turned) > 1e-3  # the other direction is another number
    rows = {name: [i for i, d in enumerate(table.documents) if d == name] for name in "abcd"}
    by_document = [torch.stack([nll[rows[name]].mean() for name in "abcd"]) for nll in (our_nll, their_nll)]
    assert found.documents.ks == pytest.approx(naive_ks(*by_document))
    assert found.documents.n == 4
    assert json.loads(json.dumps(dataclasses.asdict(found)))["documents"]["n"] == 4


def test_the_gap_is_above_zero_for_damage_and_below_for_what_is_left(lm: HookedLM, table: TokenTable) -> None:
    def knows_all(tokens: Tensor) -> Tensor:
        logits = torch.zeros(*tokens.shape, lm.model.cfg.d_vocab)
        return logits.scatter(-1, tokens.roll(-1, dims=1).unsqueeze(-1), 20.0)

    def broken(tokens: Tensor) -> Tensor:
        return -knows_all(tokens)

    reference = lm.model
    assert distance_to_reference(knows_all, reference, lm.cutter, table).nll_gap < -1
    assert distance_to_reference(broken, reference, lm.cutter, table).nll_gap > 1


def test_truth_ratios_question_by_question(lm: HookedLM) -> None:
    right = read_questions(FORGET, "test", lm.cutter, 12)
    wrong = read_wrong_answers(FORGET, "test", lm.cutter, 12, n_wrong=3)
    model = as_logits(lm.model)

    def normalised(table: TokenTable, row: int) -> float:
        """`p(answer | question)^(1 / tokens)`, without padding."""
        tokens = table.tokens[row]
        place = table.answers[row].nonzero().squeeze(-1)  # type: ignore[index]
        log_probs = model(tokens[None, : int(place[-1]) + 1])[0].double().log_softmax(-1)
        p = math.prod(log_probs[t - 1, tokens[t]].exp().item() for t in place.tolist())
        return p ** (1 / len(place))

    found = log_truth_ratios(model, lm.cutter, right, wrong, batch_size=5)
    for row in range(12):
        ratio = np.mean([normalised(table, row) for table in wrong]) / normalised(right, row)
        assert found[row].item() == pytest.approx(math.log(ratio), abs=1e-3)
    lengths = right.counted(lm.cutter).sum(dim=1)
    assert lengths.unique().numel() > 1  # so that the normalisation matters
    swapped = log_truth_ratios(model, lm.cutter, wrong[0], [right])
    torch.testing.assert_close(swapped, -log_truth_ratios(model, lm.cutter, right, wrong[:1]))


def test_a_model_that_knows_is_below_zero_and_one_that_avoids_the_truth_above(lm: HookedLM) -> None:
    right = read_questions(FORGET, "test", lm.cutter, 10)
    wrong = read_wrong_answers(FORGET, "test", lm.cutter, 10)
    truth = {tuple(row[: int(a.nonzero()[0])].tolist()): row for row, a in zip(right.tokens, right.answers, strict=True)}  # type: ignore[arg-type]

    def oracle(tokens: Tensor, sign: float = 1.0) -> Tensor:
        logits = torch.zeros(*tokens.shape, lm.model.cfg.d_vocab)
        for row, text in enumerate(tokens.tolist()):
            answer = next(full for prompt, full in truth.items() if tuple(text[: len(prompt)]) == prompt)
            n = min(len(answer), len(text))
            logits[row, : n - 1].scatter_(-1, answer[1:n, None], 5 * sign)
        return logits

    assert (log_truth_ratios(oracle, lm.cutter, right, wrong) < -0.1).all()
    assert (log_truth_ratios(lambda tokens: oracle(tokens, -1.0), lm.cutter, right, wrong) > 0.1).all()
    uniform = log_truth_ratios(lambda t: torch.zeros(*t.shape, lm.model.cfg.d_vocab), lm.cutter, right, wrong)
    torch.testing.assert_close(uniform, torch.zeros(10), atol=1e-4, rtol=0)


def test_truth_ratios_of_two_models(lm: HookedLM, edited: Any) -> None:
    right = read_questions(FORGET, "test", lm.cutter, 16)
    wrong = read_wrong_answers(FORGET, "test", lm.cutter, 16)
    itself = truth_ratio_distance(as_logits(lm.model), lm.model, lm.cutter, right, wrong)
    assert (itself.questions.ks, itself.questions.p_value) == (0.0, 1.0)
    assert itself.median_log_ratio_edited == itself.median_log_ratio_reference
    found = truth_ratio_distance(edited, lm.model, lm.cutter, right, wrong)
    ours, theirs = (log_truth_ratios(m, lm.cutter, right, wrong) for m in (edited, as_logits(lm.model)))
    assert found.questions.ks == pytest.approx(naive_ks(ours, theirs))
    assert found.questions.ks > 0
    assert found.median_log_ratio_edited == pytest.approx(ours.median().item())


def test_answers_to_other_questions_are_refused(lm: HookedLM, table: TokenTable) -> None:
    right = read_questions(FORGET, "test", lm.cutter, 8)
    model = as_logits(lm.model)
    with pytest.raises(DataError, match="to the same questions in the same order"):
        log_truth_ratios(model, lm.cutter, right, read_wrong_answers(FORGET, "test", lm.cutter, 8, seed=1))
    with pytest.raises(DataError, match="at least one table"):
        log_truth_ratios(model, lm.cutter, right, ())
    assert right.answers is not None
    unanswered = dataclasses.replace(right, answers=right.answers & False)
    with pytest.raises(DataError, match="got one without"):
        log_truth_ratios(model, lm.cutter, right, [unanswered])
    with pytest.raises(DataError, match="expected tokens whose prediction is counted"):
        distance_to_reference(model, lm.model, lm.cutter, unanswered)
