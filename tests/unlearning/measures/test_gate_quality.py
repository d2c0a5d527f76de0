"""Test gate quality: the AUROC against counted pairs, and the meaning of a gate's shares."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mtsae_lens.data.token_tables import TokenTable, read_tokens
from mtsae_lens.errors import DataError
from mtsae_lens.splice.gates import AlwaysOpen, FeatureActiveGate, RunningEvidenceGate, SequenceRateGate
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.gating import fit_gate
from mtsae_lens.unlearning.measures.gate_quality import auroc, measure_gate


def pair_by_pair(positives: Tensor, negatives: Tensor) -> float:
    wins = [(p > n) + 0.5 * (p == n) for p in positives.tolist() for n in negatives.tolist()]
    return sum(wins) / len(wins)


@pytest.mark.parametrize("seed", range(5))
def test_auroc_counts_pairs(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    positives, negatives = torch.randint(2, 9, (37,), generator=generator), torch.randint(0, 8, (23,), generator=generator)
    assert auroc(positives, negatives) == pytest.approx(pair_by_pair(positives, negatives))
    assert auroc(negatives, positives) == pytest.approx(1 - auroc(positives, negatives))
    ties_lost = sum(p > n for p in positives.tolist() for n in negatives.tolist()) / (37 * 23)
    assert auroc(positives, negatives) > ties_lost + 0.01  # a broken variant that gives ties away differs
    assert auroc(positives.double().exp(), negatives.double().exp()) == pytest.approx(auroc(positives, negatives))


def test_auroc_at_its_ends() -> None:
    ones, twos = torch.ones(3), 2 * torch.ones(4)
    assert (auroc(twos, ones), auroc(ones, twos), auroc(ones, ones)) == (1.0, 0.0, 0.5)
    with pytest.raises(DataError, match="got 0 positives and 4 negatives"):
        auroc(torch.ones(0), twos)


@pytest.fixture(scope="module")
def tables(lm: HookedLM, text_file: Path, sea_file: Path) -> list[TokenTable]:
    found = [read_tokens(str(path), "train", lm.cutter, 12) for path in (text_file, sea_file)]
    found[1].tokens[3, 10:] = 0  # padding
    return found


@pytest.fixture(scope="module")
def gates(lm: HookedLM, tables: list[TokenTable]) -> dict[str, Any]:
    running = fit_gate(lm, tables[0], tables[1:], seed=0)
    return {
        "running": running,
        "active": FeatureActiveGate(running.features[running.weights.topk(1).indices]),
        "rate": SequenceRateGate(running.features[running.weights.topk(3).indices], 0.2),
    }


def by_position(lm: HookedLM, gate: Any, table: TokenTable, after: int) -> tuple[Tensor, list[float], Tensor]:
    """Scores from `after` on, highest score of each context, and open positions, context by context."""
    scores, highest, opened = [], [], []
    for row in table.tokens:
        acts = lm.feature_acts(row[None])
        kept = (row != 0) & (torch.arange(len(row)) > 0)
        scores.append(gate.score(acts)[0][kept & (torch.arange(len(row)) >= after)])
        highest.append(gate.score(acts)[0][kept].max().item())
        opened.append(gate.open_from(acts, None)[0][0][kept])
    return torch.cat(scores), highest, torch.cat(opened).double()


@pytest.mark.parametrize("name", ["running", "active", "rate"])
def test_a_gate_is_measured_as_its_definition_says(name: str, lm: HookedLM, tables: list[TokenTable], gates: Any) -> None:
    gate = gates[name]
    quality = measure_gate(lm, gate, tables[0], {"sea": tables[1]}, after=(0, 8, 30, 32))
    sea = quality.others["sea"]
    assert [row.after for row in sea.by_position] == [0, 8, 30]  # contexts have 32 positions
    for row in sea.by_position:
        (ours, _, _), (theirs, _, _) = (by_position(lm, gate, table, row.after) for table in tables)
        assert (row.n_forget, row.n_other) == (len(ours), len(theirs))
        assert row.auroc == pytest.approx(pair_by_pair(ours, theirs), abs=1e-9)
    (_, ours_highest, ours_open), (_, theirs_highest, theirs_open) = (by_position(lm, gate, table, 0) for table in tables)
    assert sea.by_context == pytest.approx(pair_by_pair(torch.tensor(ours_highest), torch.tensor(theirs_highest)))
    assert sea.by_position[0].auroc > 0.52  # not by chance the same
    for share, opened in ((quality.true_positives, ours_open), (sea.false_positives, theirs_open)):
        assert share.positions == pytest.approx(opened.mean().item())
        assert share.low <= share.positions <= share.high
        assert (share.n_positions, share.n_contexts) == (len(opened), 12)
    assert quality.true_positives.positions > sea.false_positives.positions
    assert sea.false_positives.n_positions == 12 * 31 - 22  # padding is no text


def test_a_gate_that_tells_nothing_apart_is_at_chance(lm: HookedLM, tables: list[TokenTable]) -> None:
    quality = measure_gate(lm, AlwaysOpen(), tables[0], {"sea": tables[1]})
    sea = quality.others["sea"]
    assert {row.auroc for row in sea.by_position} == {sea.by_context} == {0.5}
    assert quality.true_positives.positions == sea.false_positives.positions == sea.false_positives.contexts == 1.0


def test_a_gate_on_the_same_text_is_at_chance(lm: HookedLM, tables: list[TokenTable], gates: Any) -> None:
    itself = measure_gate(lm, gates["running"], tables[0], {"itself": tables[0]}).others["itself"]
    assert [row.auroc for row in itself.by_position] == pytest.approx([0.5] * len(itself.by_position))
    assert itself.by_context == pytest.approx(0.5)


def test_a_gate_turned_round_is_below_chance(lm: HookedLM, tables: list[TokenTable], gates: Any) -> None:
    gate: RunningEvidenceGate = gates["running"]
    turned = dataclasses.replace(gate, weights=-gate.weights)
    one, other = (measure_gate(lm, g, tables[0], {"sea": tables[1]}).others["sea"] for g in (gate, turned))
    for ours, theirs in zip(one.by_position, other.by_position, strict=True):
        assert theirs.auroc == pytest.approx(1 - ours.auroc)


def test_contexts_are_counted_where_it_opens_at_all(lm: HookedLM, tables: list[TokenTable], gates: Any) -> None:
    share = measure_gate(lm, gates["rate"], tables[0], {"sea": tables[1]}).true_positives
    assert share.contexts == pytest.approx(share.positions)  # that gate opens in the whole of a context or not at all
    running = measure_gate(lm, gates["running"], tables[0], {"sea": tables[1]}).true_positives
    assert running.contexts > running.positions


def test_the_answer_is_json_and_seeded(lm: HookedLM, tables: list[TokenTable], gates: Any) -> None:
    content = dataclasses.asdict(measure_gate(lm, gates["running"], tables[0], {"sea": tables[1]}))
    assert json.loads(json.dumps(content))["others"]["sea"]["by_position"][0]["after"] == 0
    assert content == dataclasses.asdict(measure_gate(lm, gates["running"], tables[0], {"sea": tables[1]}))


def test_a_corpus_of_special_tokens_is_refused(lm: HookedLM, tables: list[TokenTable], gates: Any) -> None:
    empty = TokenTable("empty", torch.zeros(2, 8, dtype=torch.long), ("a", "b"))
    with pytest.raises(DataError, match="empty: expected text to measure a gate on, got only special tokens"):
        measure_gate(lm, gates["running"], tables[0], {"empty": empty})


def test_intervals_resample_the_documents_of_packed_contexts(lm: HookedLM, tables: list[TokenTable]) -> None:
    gate = AlwaysOpen()
    packed = dataclasses.replace(tables[0], spans=tuple(((f"a{row}", 0), ("b", 20)) for row in range(len(tables[0]))))
    shares = measure_gate(lm, gate, packed, {"other": tables[1]}).true_positives
    assert shares.n_documents == len(tables[0]) + 1
    assert shares.n_contexts == len(tables[0])


class OpensWhereAnswersBegin(AlwaysOpen):
    """A perfect gate of questions: its score is high at one position of forget contexts, and says the opposite at all others."""

    def score(self, observed: Tensor) -> Tensor:
        marked = observed[..., 0] == MARK
        wanted = torch.zeros_like(marked)
        wanted[:, BEGIN] = True
        return torch.where(wanted, marked, ~marked).double()

    def open_from(self, observed: Tensor, state: Any) -> tuple[Tensor, Any]:
        opened = torch.zeros(observed.shape[:2], dtype=torch.bool)
        opened[:, BEGIN] = observed[:, BEGIN, 0] == MARK
        return opened, None


MARK, BEGIN = 7.0, 9


@pytest.fixture
def asked(tables: list[TokenTable], monkeypatch: pytest.MonkeyPatch) -> list[TokenTable]:
    """The same texts as questions whose answers begin after position 9; the forget text is marked at every position."""
    answers = torch.zeros_like(tables[0].tokens, dtype=torch.bool)
    answers[:, BEGIN + 1 : BEGIN + 3] = True
    forget, retain = (dataclasses.replace(table, answers=answers) for table in tables)
    of_forget = {tuple(row) for row in forget.tokens.tolist()}

    def observe(lm: HookedLM, gate: Any, tokens: Tensor) -> Tensor:
        marked = torch.tensor([tuple(row) in of_forget for row in tokens.tolist()])
        return (MARK * marked).view(-1, 1, 1).expand(*tokens.shape, 1)

    monkeypatch.setattr("mtsae_lens.unlearning.measures.gate_quality.observe", observe)
    return [forget, retain]


def test_of_questions_only_the_position_where_the_answer_begins_counts(
    lm: HookedLM, tables: list[TokenTable], asked: list[TokenTable]
) -> None:
    quality = measure_gate(lm, OpensWhereAnswersBegin(), asked[0], {"retain": asked[1], "text": tables[1]})
    retain, text = quality.others["retain"], quality.others["text"]
    assert (quality.true_positives.positions, retain.false_positives.positions) == (1.0, 0.0)
    assert (retain.by_position[0].auroc, retain.by_context) == (1.0, 1.0)
    assert (retain.by_position[0].n_forget, retain.by_position[0].n_other) == (12, 12)
    assert (quality.true_positives.n_positions, quality.true_positives.n_contexts) == (12, 12)
    assert quality.true_positives.is_of_answers
    assert text.false_positives.n_positions == text.by_position[0].n_other == 12 * 31 - 22  # text counts everywhere
    assert not text.false_positives.is_of_answers
    (row,) = quality.detection
    assert (row.after, row.rate) == (0, 1.0)
