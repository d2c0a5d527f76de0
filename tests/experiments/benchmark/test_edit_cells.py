"""Test the cells of edits: TEST decides nothing, every corpus is measured, and controls use other features."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mtsae_lens.experiments.benchmark import edit_cells
from mtsae_lens.experiments.benchmark.arms import OURS, BenchmarkSize, BenchmarkTask
from mtsae_lens.experiments.benchmark.edit_cells import DIRECTION, LOW_RANK, edit_cell
from mtsae_lens.splice.gates import AlwaysOpen
from mtsae_lens.splice.group_gate import KnownGroupsGate
from mtsae_lens.unlearning import protocol
from mtsae_lens.unlearning import task as task_module
from mtsae_lens.unlearning.measures.effects import measure_edits
from mtsae_lens.unlearning.task import Corpus

PLACES = {"0.02": 0, "0.05 goal": 1, "0.1": 1}


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose settings by hand, because the tiny model is worse than a uniform guess and nothing would be chosen."""
    monkeypatch.setattr(edit_cells, "read_sweep", lambda outcomes, *args: dict(PLACES) if outcomes else {})


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Sources and splits in the order in which they are read."""
    found: list[tuple[str, str]] = []
    original = task_module.read_tokens

    def reading(source: str, split: Any, *args: Any, **settings: Any) -> Any:
        found.append((source, split))
        return original(source, split, *args, **settings)

    monkeypatch.setattr(task_module, "read_tokens", reading)
    return found


def test_a_cell_of_ours(
    make_setup: Any, text_task: Any, size: BenchmarkSize, read: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = make_setup(text_task)
    swept, draws = {}, []
    original, original_draws = edit_cells.sweep, edit_cells.matched_random_edits

    def sweep(lm: Any, task: Any, candidates: Any) -> Any:
        swept[len(swept)] = candidates
        return original(lm, task, candidates)

    def matched_random_edits(lm: Any, task: Any, candidate: Any, *args: Any) -> Any:
        draws.append((candidate.edit, original_draws(lm, task, candidate, *args)))
        return draws[-1][1]

    monkeypatch.setattr(edit_cells, "sweep", sweep)
    monkeypatch.setattr(edit_cells, "matched_random_edits", matched_random_edits)
    cell = edit_cell(setup, size, OURS, 0, attacked=False).to_json()
    json.dumps(cell, allow_nan=False)
    assert list(cell["methods"]) == [OURS, f"{OURS}, no gate", DIRECTION, f"{DIRECTION}, no gate"]
    assert 0 <= cell["identity_error"] <= 1e-4
    tables = setup.task.tables("test", setup.lm.cutter)
    for candidates, (name, method) in zip(swept.values(), cell["methods"].items(), strict=True):
        assert [row["setting"] for row in method["tune"]] == [candidate.setting for candidate in candidates]
        assert set(method["test"]) == set(PLACES)
        assert "attacks" not in method
        gated = {candidate.setting["false_positive_rate"] is not None for candidate in candidates}
        assert gated == {"no gate" not in name}
        for budget, place in PLACES.items():
            row = method["test"][budget]
            assert row["setting"] == candidates[place].setting
            assert list(row["corpora"]) == list(tables)
            for source, table in tables.items():
                (effect,) = measure_edits(setup.lm, table, [candidates[place].edit])
                of_corpus = row["corpora"][source]
                assert of_corpus["nll_delta"] == pytest.approx(effect.nll_delta, abs=1e-5)
                assert sum(d["n_tokens"] for d in of_corpus["documents"]) == of_corpus["n_tokens"]
            assert ("random" in row) == (name == OURS and budget == "0.05 goal")
    assert [edit for edit, _ in draws] == [swept[0][PLACES["0.05 goal"]].edit]
    for edit, drawn in draws:
        assert len(drawn) == 2
        assert all(
            not set(edit.features) & set(random_edit.features) and random_edit.gate == edit.gate for random_edit in drawn
        )
    sources = text_task.task(1).sources
    first_test = next(place for place, (_, split) in enumerate(read) if split == "test")
    assert {split for _, split in read[:first_test]} == {"select", "tune"}
    assert not {(source, split) for source, split in read if source in sources("neutral") and split != "test"}
    random = cell["methods"][OURS]["test"]["0.05 goal"]["random"]
    assert set(random) == set(sources("forget", "near"))
    for pooled in random.values():
        total = sum(d["n_tokens"] * d["nll_delta"] for d in pooled["documents"])
        assert total / sum(d["n_tokens"] for d in pooled["documents"]) == pytest.approx(pooled["nll_delta"], abs=1e-6)
        assert pooled["n_draws"] == 2


def test_people_are_edited_behind_a_gate_of_known_groups(
    make_setup: Any, text_file: Path, size: BenchmarkSize, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("facts:forget/6:known", "facts:retain/8:known", str(text_file))
    corpora = (Corpus(asked[0], "forget"), Corpus(asked[1], "near"), Corpus(asked[2], "far"))
    task, swept = BenchmarkTask("people", corpora, asked[0], asked[1:]), []
    monkeypatch.setattr(edit_cells, "rankings", lambda *args, **kwargs: {"a": (1, 2, 3)})  # the tiny SAE tells no people apart
    monkeypatch.setattr(edit_cells, "sweep", lambda lm, task, candidates: swept.append(candidates) or [])
    of_questions = replace(size.gated, edits=("project",), multipliers=(-0.3, 0.0))
    cell = edit_cell(make_setup(task), replace(size, gated_questions=of_questions), OURS, 0, attacked=False)
    gates = {name: {type(one.edit.gate) for one in candidates} for name, candidates in zip(cell.methods, swept, strict=True)}
    always = {f"{OURS}, no gate": {AlwaysOpen}, f"{DIRECTION}, no gate": {AlwaysOpen}}
    assert gates == always | {OURS: {KnownGroupsGate}, DIRECTION: {KnownGroupsGate}}
    assert {one.multiplier for one in swept[0]} == {-0.3, 0.0}


def test_test_text_decides_nothing(
    make_setup: Any, text_task: Any, size: BenchmarkSize, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = edit_cell(make_setup(text_task), size, "topk", 0, attacked=False).to_json()
    assert list(cell["methods"]) == ["topk", "topk, no gate"]
    original = task_module.read_tokens

    def others(source: str, split: Any, cutter: Any, n: int, *, seed: int) -> Any:
        return original("milton" if split == "test" else source, split, cutter, n, seed=seed)

    monkeypatch.setattr(task_module, "read_tokens", others)
    other = edit_cell(make_setup(text_task), size, "topk", 0, attacked=False).to_json()
    for name, method in cell["methods"].items():
        assert other["methods"][name]["tune"] == method["tune"]
        for budget, row in method["test"].items():
            assert other["methods"][name]["test"][budget]["setting"] == row["setting"]
            assert other["methods"][name]["test"][budget]["corpora"] != row["corpora"]


def test_the_most_at_the_main_budget_has_its_random_features_too(
    make_setup: Any, text_task: Any, size: BenchmarkSize, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"0.02": 0, "0.05": 1, "0.05 goal": 0}
    monkeypatch.setattr(edit_cells, "read_sweep", lambda outcomes, *args: places)
    cell = edit_cell(make_setup(text_task), size, "topk", 0, attacked=False).to_json()
    assert {name: "random" in row for name, row in cell["methods"]["topk"]["test"].items()} == {
        "0.02": False,
        "0.05": True,
        "0.05 goal": True,
    }


def test_the_settings_are_read_with_the_goal_of_the_reference(
    make_setup: Any, text_task: Any, size: BenchmarkSize, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    monkeypatch.setattr(edit_cells, "read_sweep", lambda outcomes, *args: given.append(args) or {})
    for reference in (True, False):
        setup = make_setup(text_task) if reference else make_setup(text_task, None)
        cell = edit_cell(setup, size, "topk", 0, attacked=True).to_json()
        assert all(method["test"] == {} and "attacks" not in method for method in cell["methods"].values())
    assert given[0] == given[1]
    assert given[0] == (pytest.approx(8.3178, abs=1e-3), make_setup(text_task).goal)
    assert given[2][1] is None


def test_a_method_without_a_candidate_keeps_its_place(
    make_setup: Any, text_task: Any, size: BenchmarkSize, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        edit_cells, "rankings", lambda evidence, *args, **kwargs: {} if evidence.near else {"a": (1, 2, 3, 4, 5)}
    )
    cell = edit_cell(make_setup(text_task), size, "topk", 0, attacked=False).to_json()
    assert cell["methods"]["topk, no gate"] == {"tune": [], "test": {}}
    assert cell["methods"]["topk"]["test"]


def test_a_splice_that_is_not_the_identity_stops_the_cell(
    make_setup: Any, text_task: Any, size: BenchmarkSize, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "max_identity_error", lambda *args: 0.1)
    with pytest.raises(RuntimeError, match=r"without an edit changes the logits by 0\.1"):
        edit_cell(make_setup(text_task), size, "topk", 0, attacked=False)


def test_an_attacked_cell_has_the_main_edit_in_full_and_its_attacks(
    make_setup: Any, text_task: Any, size: BenchmarkSize
) -> None:
    cell = edit_cell(make_setup(text_task), size, OURS, 0, attacked=True).to_json()
    json.dumps(cell, allow_nan=False)
    for name, method in cell["methods"].items():
        assert ("attacks" in method) == ("main" in method) == (name in (OURS, DIRECTION, LOW_RANK))
    ours = cell["methods"][OURS]
    assert {"gate", "reference", "calibrated_nll_delta", "generation", "samples"} <= set(ours["main"])
    forget = text_task.task(1).forget
    after_the_edit = ours["test"]["0.05 goal"]["corpora"][forget]["nll_edited"]
    for curve in ours["attacks"]["relearning"]["hook in place"].values():
        assert curve[0]["nll"] == pytest.approx(after_the_edit, abs=1e-4)
