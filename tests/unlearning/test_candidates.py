"""Test candidates: which text features are ranked on, every setting of the grid once, and the dense direction at every multiplier."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from mtsae_lens.errors import ConfigError
from mtsae_lens.splice.direction_edits import DirectionEdit
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.gates import AlwaysOpen, RunningEvidenceGate
from mtsae_lens.unlearning import candidates, gate_kinds
from mtsae_lens.unlearning.candidates import (
    Grid,
    direction_candidates,
    feature_candidates,
    fit_gates,
    gather_evidence,
    ranked_candidates,
    rankings,
)
from mtsae_lens.unlearning.edit_kinds import EDIT_KINDS
from mtsae_lens.unlearning.selection.evidence import SelectionEvidence
from mtsae_lens.unlearning.selection.ranking import ranking
from mtsae_lens.unlearning.selection.scores import make_score
from mtsae_lens.unlearning.task import Corpus, Task

GATES = {0.01: RunningEvidenceGate(torch.tensor([1]), torch.tensor([1.0]), 0.9, 2.0), None: AlwaysOpen()}


@pytest.fixture
def task(text_file: Path, sea_file: Path) -> Task:
    corpora = (Corpus("kjv", "far"), Corpus(str(sea_file), "forget"), Corpus(str(text_file), "near"), Corpus("sotu", "neutral"))
    return Task(corpora, 6)


def test_features_are_chosen_against_near_text_only_where_it_is_to_be_spared(lm: Any, task: Task) -> None:
    tables = task.tables("select", lm.cutter)
    far, forget, near, _ = tables.values()
    scores = ("frequency_difference", "fisher_attribution", "frequency_ratio")
    gathered = gather_evidence(lm, task)
    found = {
        spare: rankings(gathered if spare else gathered.without_near(), Grid(scores), min_ratio=1.0) for spare in (True, False)
    }
    for spare, score in product((True, False), scores):
        evidence = SelectionEvidence(lm, forget, (near,) if spare else (), (far,))
        settings = {"min_ratio": 1.0} if score == "frequency_ratio" else {}
        assert found[spare].get(score, ()) == ranking(make_score(score, **settings)(evidence))
    assert found[True] != found[False]
    assert found[False]["frequency_ratio"]


def test_a_score_without_a_feature_is_left_out_and_the_ratio_is_that_of_the_setting(lm: Any, task: Task) -> None:
    scores = ("frequency_ratio", "frequency_difference")
    evidence = gather_evidence(lm, task).without_near()
    assert set(rankings(evidence, Grid(scores), min_ratio=1e9)) == {"frequency_difference"}
    few, many = (rankings(evidence, Grid(scores[:1]), min_ratio=r)["frequency_ratio"] for r in (2.0, 1.0))
    assert len(few) < len(many)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scores": "frequency"}, r"got 'frequency'; give scores=\('frequency',\)"),
        ({"n_features": 8}, r"got 8; give n_features=\(8,\)"),
        ({"n_features": (8, 0)}, r"expected n_features of at least 1, got \(8, 0\)"),
        ({"n_features": (-3,)}, r"expected n_features of at least 1, got \(-3,\)"),
        ({"false_positive_rates": (None, 5)}, "between 0 and 1, or None for no gate, got 5"),
    ],
    ids=["text", "number", "no features", "fewer than none", "percent"],
)
def test_a_grid_of_what_is_no_tuple_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Grid(**settings)


def test_rankings_read_select_alone(lm: Any, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = Task.table
    monkeypatch.setattr(Task, "table", lambda self, s, split, c: read.append((s, split)) or original(self, s, split, c))
    rankings(gather_evidence(lm, task), Grid(("frequency_difference",)), min_ratio=1.0)
    assert sorted(read) == sorted((source, "select") for source in task.sources("forget", "near", "far"))


def test_every_setting_of_the_grid_is_a_candidate_once(lm: Any, task: Task) -> None:
    grid = Grid(n_features=(2, 3, 8, 100), multipliers=(0.0, 2.0))
    ranked = {"a": (9, 4, 7, 1, 5), "b": (3, 2)}
    made = feature_candidates(ranked, grid, GATES, gather_evidence(lm, task))
    sizes = {"a": (2, 3, 5), "b": (2,)}  # no more than there are, and none twice
    expected = {(s, n, m, rate) for s in ranked for n in sizes[s] for m in (0.0, 2.0) for rate in GATES}
    keys = ("score", "n_features", "multiplier", "false_positive_rate")
    found = [tuple(candidate.setting[key] for key in keys) for candidate in made]
    assert len(found) == len(set(found))
    assert set(found) == expected
    for candidate, (score, n, multiplier, rate) in zip(made, found, strict=True):
        edit = candidate.edit
        assert isinstance(edit, FeatureEdit)
        assert (edit.features, edit.multiplier) == (ranked[score][:n], multiplier)
        assert edit.gate is GATES[rate]


def test_features_of_edits_that_are_carried_on_are_chosen_by_the_effect_of_these(
    lm: Any, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kind of edit gets the features that its effects rank first."""
    monkeypatch.setitem(EDIT_KINDS, "scale_carried", replace(EDIT_KINDS["scale"], carried=True))
    monkeypatch.setattr(
        candidates, "rankings", lambda evidence, *_, **__: {"attribution": (5, 6) if evidence.carried else (1, 2)}
    )
    grid = Grid(n_features=(2,), multipliers=(1.0,), edits=("scale", "scale_carried"))
    made = ranked_candidates(gather_evidence(lm, task), grid, GATES, min_ratio=1.0)
    found = [(candidate.kind, candidate.features) for candidate in made]
    assert found == [("scale", (1, 2))] * 2 + [("scale_carried", (5, 6))] * 2


def test_no_features_and_no_ranking_give_no_candidate(lm: Any, task: Task) -> None:
    evidence = gather_evidence(lm, task)
    assert feature_candidates({}, Grid(), GATES, evidence) == []


@pytest.mark.parametrize("rates", [(None,), (0.01, 0.3), (0.3, None, 0.01), ()])
def test_gates_are_those_of_the_rates(rates: tuple[Any, ...], lm: Any, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = Task.table
    monkeypatch.setattr(Task, "table", lambda self, s, split, c: read.append((s, split)) or original(self, s, split, c))
    gates = fit_gates(lm, task, rates)
    assert set(gates) == set(rates)
    numbers = [rate for rate in rates if rate is not None]
    if None in rates:
        assert gates[None] == AlwaysOpen()
    if not numbers:
        assert read == []
        return
    spared = task.sources("near", "far")
    assert sorted(read) == sorted([(task.forget, "select"), *((s, split) for s in spared for split in ("select", "tune"))])
    strict, loose = (gates[rate] for rate in (0.01, 0.3))
    assert isinstance(strict, RunningEvidenceGate)
    assert isinstance(loose, RunningEvidenceGate)
    assert strict.weights.equal(loose.weights)  # one fit
    assert strict.threshold > loose.threshold
    opened = []
    for source in spared:
        for tokens in lm.batches(original(task, source, "tune", lm.cutter)):
            opened.append((strict.open_from(lm.feature_acts(tokens), None)[0], ~lm.masked(tokens)))
    assert sum(int((gate & counted).sum()) for gate, counted in opened) <= 0.011 * sum(int(c.sum()) for _, c in opened)


def test_the_gate_is_fitted_with_the_seed_of_the_task(lm: Any, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []
    original = gate_kinds.fit_gate
    monkeypatch.setattr(gate_kinds, "fit_gate", lambda *args, seed: seeds.append(seed) or original(*args, seed=seed))
    fit_gates(lm, Task(task.corpora, 4, seed=7), (0.1,))
    assert seeds == [7]


def test_a_direction_is_a_unit_basis_at_every_multiplier_behind_every_gate() -> None:
    direction, center = torch.tensor([3.0, 0.0, 4.0]), torch.tensor([1.0, 2.0, 3.0])
    made = direction_candidates(direction, center, (0.0, 2.5), GATES)
    found = [(c.setting["multiplier"], c.setting["false_positive_rate"]) for c in made]
    assert sorted(found, key=str) == sorted(product((0.0, 2.5), GATES), key=str)
    for candidate, (multiplier, rate) in zip(made, found, strict=True):
        edit = candidate.edit
        assert isinstance(edit, DirectionEdit)
        assert edit.multiplier == multiplier
        assert edit.gate is GATES[rate]
        torch.testing.assert_close(edit.basis, torch.tensor([[0.6, 0.0, 0.8]]))
        assert edit.center.equal(center)
