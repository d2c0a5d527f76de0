"""Test the gate: it separates texts, its fit is a logistic regression, and its thresholds keep their rate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from mtsae_lens.data.questions import read_questions
from mtsae_lens.data.token_tables import TokenTable, read_tokens
from mtsae_lens.errors import DataError
from mtsae_lens.splice.gates import RunningEvidenceGate, SequenceRateGate
from mtsae_lens.unlearning import gating
from mtsae_lens.unlearning.gating import fit_gate, thresholds_at


def text(lm: Any, path: Path, split: Any, n: int = 12) -> TokenTable:
    return read_tokens(str(path), split, lm.cutter, n)


def joined(*tables: TokenTable) -> TokenTable:
    answers = None if tables[0].answers is None else torch.cat([t.answers for t in tables])  # type: ignore[misc]
    documents = tuple(name for table in tables for name in table.documents)
    return TokenTable("joined", torch.cat([table.tokens for table in tables]), documents, answers)


def asked(table: TokenTable, at: int) -> TokenTable:
    """Of every context, the token at `at` and all after it as the answer: the gate is fitted at `at - 1` alone."""
    return replace(table, answers=torch.arange(table.tokens.shape[1]).expand(table.tokens.shape) >= at)


def evidence(lm: Any, gate: RunningEvidenceGate, table: TokenTable) -> torch.Tensor:
    """Decision at every position of every context, by the definition."""
    rows = []
    for row in table.tokens:
        fires = lm.feature_acts(row[None])[0] > 0
        values = []
        for t in range(len(row)):
            counts = sum(gate.decay ** (t - s) * fires[s].double() for s in range(t + 1))
            values.append(float(counts[gate.features] @ gate.weights.double()) - gate.threshold)
        rows.append(torch.tensor(values))
    return torch.stack(rows)


def test_the_gate_tells_held_out_text_apart(lm: Any, text_file: Path, sea_file: Path) -> None:
    gate = fit_gate(lm, text(lm, sea_file, "select"), [text(lm, text_file, "select")], seed=0)
    forget, retain = (evidence(lm, gate, text(lm, path, "test"))[:, 8:].flatten() for path in (sea_file, text_file))
    auroc = (forget[:, None] > retain).double().mean().item()
    assert auroc > 0.8
    swapped = fit_gate(lm, text(lm, text_file, "select"), [text(lm, sea_file, "select")], seed=0)
    forget, retain = (evidence(lm, swapped, text(lm, path, "test"))[:, 8:].flatten() for path in (sea_file, text_file))
    assert (forget[:, None] > retain).double().mean().item() < 0.2


def test_without_retain_text_there_is_no_gate(lm: Any, sea_file: Path) -> None:
    with pytest.raises(DataError, match="stay closed on, got none; give a retain corpus"):
        fit_gate(lm, text(lm, sea_file, "select"), [], seed=0)


def by_hand(rows: np.ndarray, labels: np.ndarray, weight: np.ndarray, penalty: float) -> np.ndarray:
    """Weights, then bias."""

    def loss(parameters: np.ndarray) -> float:
        logits = rows @ parameters[:-1] + parameters[-1]
        each = np.logaddexp(0, np.where(labels > 0, -logits, logits))
        return float((weight * each).sum() + penalty / 2 * (parameters[:-1] ** 2).sum())

    return np.asarray(minimize(loss, np.zeros(rows.shape[1] + 1), method="BFGS", options={"gtol": 1e-9, "maxiter": 2000}).x)


@pytest.mark.parametrize("penalty", [1e-2, 0.3])
def test_the_regression_is_the_minimum_that_scipy_finds(penalty: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(60, 4, generator=generator) * 2
    labels = (rows[:, 0] - rows[:, 1] + torch.randn(60, generator=generator) > 0).float()
    weight = torch.rand(60, generator=generator) / 60
    weights, bias = gating.logistic_regression(rows, labels, weight, penalty)
    expected = by_hand(*(value.double().numpy() for value in (rows, labels, weight)), penalty)
    np.testing.assert_allclose([*weights.tolist(), float(bias)], expected, atol=2e-3)


def test_the_gate_of_questions_is_fitted_where_their_answers_begin(lm: Any, text_file: Path, sea_file: Path) -> None:
    """All of `fit_gate` by hand: decayed counts at one position a context, both sides and all retain corpora weighing the same."""
    forget, near, far = asked(text(lm, sea_file, "select", 9), 12), asked(text(lm, text_file, "select", 7), 20), None
    far = asked(read_tokens("kjv", "select", lm.cutter, 4), 5)
    decay, rows, labels, weight = 0.9, [], [], []
    for table, at, share in ((forget, 11, 0.5), (near, 19, 0.25), (far, 4, 0.25)):
        for row in table.tokens:
            fires = (lm.feature_acts(row[None])[0] > 0).double()
            rows.append(sum(decay ** (at - s) * fires[s] for s in range(at + 1)))
            labels.append(float(table is forget))
            weight.append(share / len(table))
    gate = fit_gate(lm, forget, [near, far], seed=0, decay=decay, penalty=0.05)
    expected = by_hand(torch.stack(rows).numpy(), np.array(labels), np.array(weight), 0.05)  # type: ignore[arg-type]
    found = np.zeros(lm.sae.cfg.d_sae)
    found[gate.features] = gate.weights
    np.testing.assert_allclose(found, expected[:-1], atol=5e-3)
    assert gate.threshold == pytest.approx(-expected[-1], abs=5e-3)
    assert gate.decay == decay


def test_real_questions_are_sampled_at_the_token_before_the_answer(lm: Any) -> None:
    table = read_questions("facts:forget:known", "select", lm.cutter, 10)
    sampled = list(gating.sampled(lm, table, torch.Generator()))
    at = torch.cat([where for _, where in sampled])
    assert torch.cat([tokens for tokens, _ in sampled]).equal(table.tokens)
    assert table.answers is not None
    for row, answers in zip(at, table.answers, strict=True):
        assert row.nonzero().flatten().tolist() == [int(answers.nonzero()[0]) - 1]


def test_text_is_sampled_at_random_places_that_are_not_masked(lm: Any, text_file: Path) -> None:
    table = text(lm, text_file, "select", 16)
    table.tokens[:, 10:14] = 0
    at = torch.cat([where for _, where in gating.sampled(lm, table, torch.Generator().manual_seed(0))])
    assert not at[:, 10:14].any()
    assert not at[:, 0].any()
    assert 0.8 * gating.SAMPLES_PER_CONTEXT * 27 / 32 < at.sum() / 16 < 1.2 * gating.SAMPLES_PER_CONTEXT * 27 / 32
    assert at.float().std(dim=0)[1:10].min() > 0  # not the same places in every context


def test_a_corpus_weighs_the_same_however_long(lm: Any, text_file: Path, sea_file: Path) -> None:
    forget, retain = asked(text(lm, sea_file, "select"), 15), asked(text(lm, text_file, "select", 6), 15)
    other = asked(read_tokens("kjv", "select", lm.cutter, 6), 15)

    def weights(*tables: TokenTable) -> torch.Tensor:
        gate = fit_gate(lm, forget, tables, seed=0, penalty=0.05)
        return torch.zeros(lm.sae.cfg.d_sae).index_put((gate.features,), gate.weights)

    once, thrice = weights(retain, other), weights(joined(retain, retain, retain), other)
    torch.testing.assert_close(thrice, once, atol=1.5e-2, rtol=0)  # where the fit stops
    as_another_corpus = weights(retain, retain, other)
    assert (as_another_corpus - once).abs().max() > 5e-2  # the test could see a difference


def test_a_fit_is_that_of_its_seed(lm: Any, text_file: Path, sea_file: Path) -> None:
    forget, retain = text(lm, sea_file, "select", 4), [text(lm, text_file, "select", 4)]
    one, same, other = (fit_gate(lm, forget, retain, seed=seed) for seed in (1, 1, 2))
    assert one.weights.equal(same.weights)
    assert one.threshold == same.threshold
    assert one.features.equal(same.features)
    assert one.threshold != other.threshold


def test_features_that_fire_most_are_kept_where_there_are_many(
    lm: Any, text_file: Path, sea_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget, retain = asked(text(lm, sea_file, "select"), 20), asked(text(lm, text_file, "select"), 20)
    monkeypatch.setattr(gating, "MAX_FEATURES", 5)
    gate = fit_gate(lm, forget, [retain], seed=0)
    counts = [gating._decayed_counts(lm, table, gating.DECAY, torch.Generator()) for table in (forget, retain)]
    most = (counts[0].sum(dim=0) + counts[1].sum(dim=0)).topk(5).indices
    assert 1 <= len(gate.features) <= 5
    assert set(gate.features.tolist()) <= set(most.tolist())


@pytest.mark.parametrize("rates", [(0.02, 0.2), (0.5, 0.1, 0.01)])
def test_thresholds_give_the_wanted_rate_on_the_worst_corpus(
    rates: tuple[float, ...], lm: Any, text_file: Path, sea_file: Path
) -> None:
    gate = fit_gate(lm, text(lm, sea_file, "select"), [text(lm, text_file, "select")], seed=0)
    held_out = [text(lm, text_file, "tune", 20), read_tokens("kjv", "tune", lm.cutter, 10)]
    made = thresholds_at(lm, gate, held_out, rates)
    assert [list(m.weights) for m in made] == [list(gate.weights)] * len(rates)
    for threshold_gate, rate in zip(made, rates, strict=True):
        opened = []
        for table in held_out:
            unmasked = table.tokens != 0
            unmasked[:, 0] = False
            opened.append((evidence(lm, threshold_gate, table)[unmasked] > 1e-6).double().mean().item())
        assert max(opened) == pytest.approx(rate, abs=0.008)  # 1/310, and ties of contexts whose features do not fire


def test_of_questions_the_rate_is_that_of_where_answers_begin(lm: Any, text_file: Path, sea_file: Path) -> None:
    gate = fit_gate(lm, text(lm, sea_file, "select"), [text(lm, text_file, "select")], seed=0)
    table = asked(text(lm, text_file, "tune", 20), 9)
    (made,) = thresholds_at(lm, gate, [table], [0.25])
    values = evidence(lm, gate, table)[:, 8] + gate.threshold
    assert made.threshold == pytest.approx(float(np.quantile(values.numpy(), 0.75)), abs=1e-4)


def test_a_sequence_rate_is_calibrated_on_contexts(lm: Any, text_file: Path) -> None:
    table = read_tokens(str(text_file), "tune", lm.cutter, 12)
    features = torch.arange(32)[:6]
    (made,) = thresholds_at(lm, SequenceRateGate(features, 0.9), [table], [0.25])
    assert isinstance(made, SequenceRateGate)
    open_contexts = made.open_from(lm.feature_acts(table.tokens), None)[0][:, 0]
    assert 0 < int(open_contexts.sum()) <= 0.25 * len(table) + 1
