"""The protocol: what decides on TUNE, which text is read when, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mtsae_lens.errors import DataError
from mtsae_lens.unlearning import protocol
from mtsae_lens.unlearning.protocol import Corpus, Experiment, UnlearningSettings, choose, measure_on_test
from mtsae_lens.unlearning.selection.statistics import FiringStatistics


def row(n_features: int, multiplier: float, forget: float, near: float, far: float) -> dict[str, float]:
    found = {"n_features": n_features, "multiplier": multiplier, "forget": forget, "near": near, "far": far}
    return found | {"forget_nll": 4.0 + forget}


SWEEP = [
    row(1, 1.0, 0.1, 0.0, 0.00),
    row(2, 1.0, 0.5, 0.09, 0.04),
    row(3, 1.0, 0.9, 0.09, 0.06),  # too dear far away
    row(3, 2.0, 0.8, 0.11, 0.01),  # too dear nearby
    row(2, 2.0, 0.3, 0.10, 0.05),  # on the line
]


@pytest.fixture
def decide(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`choose` on a given sweep: everything before it is made up."""

    def call(sweep: list[dict[str, float]], gap: float | None = None, **settings: Any) -> Any:
        rate = torch.tensor([0.9, 0.8, 0.7, 0.6])
        monkeypatch.setattr(Experiment, "tables", lambda self, split, role=None: [SimpleNamespace()])
        monkeypatch.setattr(protocol, "firing_statistics", lambda lm, table: FiringStatistics("c", rate, rate, 10))
        monkeypatch.setattr(protocol, "rank_by_frequency", lambda *args, **kwargs: [3, 1, 2, 0])
        monkeypatch.setattr(protocol, "calibrate_gate", lambda *args, **kwargs: "gate")
        monkeypatch.setattr(protocol, "_sweep", lambda experiment, edits: sweep)
        monkeypatch.setattr(protocol, "_reference_gap", lambda *args: gap)
        lm: Any = SimpleNamespace(model=SimpleNamespace(cfg=SimpleNamespace(d_vocab=4096)))
        experiment = Experiment(lm, (Corpus("a", "forget"), Corpus("b", "far")), UnlearningSettings(**settings))  # type: ignore[arg-type]
        return choose(experiment, None if gap is None else "reference")  # type: ignore[arg-type]

    return call


def test_the_most_forgetting_within_both_budgets_wins(decide: Any) -> None:
    chosen = decide(SWEEP)
    assert (chosen.features, chosen.multiplier) == ((3, 1), 1.0)
    assert chosen.sweep == tuple(SWEEP)
    assert chosen.edit.features == (3, 1)


@pytest.mark.parametrize(("gap", "expected"), [(0.28, 2.0), (0.45, 1.0), (5.0, 1.0)])
def test_with_a_reference_the_nearest_to_it_wins(decide: Any, gap: float, expected: float) -> None:
    chosen = decide(SWEEP, gap)
    assert (len(chosen.features), chosen.multiplier) == (2, expected)


def test_the_budgets_are_those_of_the_settings(decide: Any) -> None:
    assert len(decide(SWEEP, far_budget=0.06).features) == 3
    assert decide(SWEEP, near_budget=0.11).multiplier == 2.0
    assert len(decide(SWEEP, near_budget=0.0, far_budget=0.0).features) == 1


def test_no_setting_within_the_budgets_is_an_error_that_names_the_nearest(decide: Any) -> None:
    with pytest.raises(DataError, match=r"nearest: far 0\.060, near 0\.090.*--far-budget or --near-budget"):
        decide(SWEEP[2:4], near_budget=0.1, far_budget=0.05)


def test_a_budget_of_zero_that_nothing_meets_is_the_same_error(decide: Any) -> None:
    with pytest.raises(DataError, match="no setting stays within the budgets"):
        decide(SWEEP[2:4], far_budget=0.0)


@pytest.mark.parametrize("roles", [["far"], ["forget", "near"], ["forget", "forget", "far"], []])
def test_roles_are_checked(roles: list[Any]) -> None:
    with pytest.raises(DataError, match="exactly one corpus to forget and at least one far"):
        Experiment(None, tuple(Corpus(str(i), role) for i, role in enumerate(roles)), UnlearningSettings())  # type: ignore[arg-type]


SETTINGS = UnlearningSettings(
    n_features=(1, 2, 1000),
    multipliers=(1.0, 2.0),
    far_budget=9,
    near_budget=9,
    min_ratio=1.0,
    n_random_draws=2,
    contexts_per_split=6,
)


@pytest.fixture
def experiment(lm: Any, text_file: Path, sea_file: Path) -> Experiment:
    return Experiment(lm, (Corpus(str(sea_file), "forget"), Corpus(str(text_file), "far"), Corpus("kjv", "near")), SETTINGS)


def test_each_split_is_read_when_its_turn_comes(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = protocol.read_tokens
    monkeypatch.setattr(
        protocol,
        "read_tokens",
        lambda source, split, *a, **kw: read.append((source, split)) or original(source, split, *a, **kw),
    )
    chosen = choose(experiment)
    assert {split for _, split in read} == {"select", "tune"}
    read.clear()
    measure_on_test(experiment, chosen)
    of_test = [source for source, split in read if split == "test"]
    assert sorted(of_test) == sorted(corpus.source for corpus in experiment.corpora)
    assert "tune" not in {split for _, split in read}


def test_choose_and_measure(experiment: Experiment, tiny_model: Any) -> None:
    chosen = choose(experiment, tiny_model)
    assert 1 <= len(chosen.features) <= 32
    sizes = {row["n_features"] for row in chosen.sweep}
    assert max(sizes) <= 32  # no more than there are
    assert {1, 2} <= sizes
    measured = measure_on_test(experiment, chosen, tiny_model)
    sources = [corpus.source for corpus in experiment.corpora]
    assert list(measured["corpora"]) == list(measured["random_control"]) == list(measured["documents"]) == sources
    assert list(measured["ladder"]) == ["zero", "clamp", "gated_clamp"]
    for source, role in zip(sources, ("forget", "far", "near"), strict=True):
        edit = measured["corpora"][source]
        assert edit["role"] == role
        assert edit["nll_delta"] == pytest.approx(edit["nll_edited"] - edit["nll_clean"], abs=1e-6)
        assert edit["nll_delta_low"] <= edit["nll_delta"] <= edit["nll_delta_high"]
        assert 0 <= edit["gate_open"] <= 1
        assert edit["nll_reference"] == pytest.approx(edit["nll_clean"], abs=1e-5)  # it is its own reference
        assert measured["ladder"]["gated_clamp"][source]["nll_delta"] == edit["nll_delta"]
        documents = measured["documents"][source]
        assert sum(d["n_tokens"] for d in documents) == edit["n_tokens"]
        assert sum(d["n_tokens"] * d["nll_edited"] for d in documents) / edit["n_tokens"] == pytest.approx(edit["nll_edited"])
        control = measured["random_control"][source]
        assert control["n_draws"] == 2
        assert control["nll_delta_min"] <= control["nll_delta"] <= control["nll_delta_max"]
    assert measured["identity_error"] <= 1e-4


def test_the_sweep_takes_the_worst_corpus_of_a_role(
    lm: Any, text_file: Path, sea_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpora = (Corpus(str(sea_file), "forget"), Corpus(str(text_file), "far"), Corpus("kjv", "far"))
    deltas = {str(sea_file): 1.0, str(text_file): 0.2, "kjv": 0.1}
    monkeypatch.setattr(
        protocol,
        "measure_edits",
        lambda lm, table, edits: [
            SimpleNamespace(nll_delta=deltas[table.corpus], nll_edited=5.0, mean=lambda sums: sums) for _ in edits
        ],
    )
    (found,) = protocol._sweep(Experiment(lm, corpora, SETTINGS), [SimpleNamespace(features=(1,), multiplier=1.0)])  # type: ignore[list-item]
    assert found == {"n_features": 1, "multiplier": 1.0, "forget": 1.0, "near": 0.0, "far": 0.2, "forget_nll": 5.0}


def test_a_corpus_has_one_role(lm: Any, text_file: Path) -> None:
    for corpora in ((str(text_file), str(text_file)), ("kjv", "kjv")):
        with pytest.raises(DataError, match="given in two roles"):
            Experiment(lm, (Corpus(corpora[0], "forget"), Corpus(corpora[1], "far")), SETTINGS)


def test_without_a_reference_no_setting_worse_than_guessing_wins() -> None:
    rows = [{"forget_nll": nll} for nll in (4.0, 8.0, 9.0)]
    assert protocol._no_worse_than_guessing(rows, 8.5) == rows[:2]
    assert protocol._no_worse_than_guessing(rows, 3.0) == rows[:1]


def test_no_feature_that_prefers_the_forget_text_is_an_error(experiment: Experiment) -> None:
    strict = Experiment(experiment.lm, experiment.corpora, UnlearningSettings(min_ratio=1e9, contexts_per_split=4))
    with pytest.raises(DataError, match=r"no feature fires .* lower --min-ratio"):
        choose(strict)


def test_a_splice_that_is_not_the_identity_stops_everything(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = choose(experiment)
    monkeypatch.setattr(protocol, "max_identity_error", lambda *args: 0.1)
    with pytest.raises(RuntimeError, match=r"without an edit changes the logits by 0\.1"):
        measure_on_test(experiment, chosen)
