"""Test the cells of methods that change weights: every snapshot is an outcome on TUNE, the chosen ones are measured on TEST."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mtsae_lens.experiments.benchmark import measuring as module
from mtsae_lens.experiments.benchmark.arms import BenchmarkSize
from mtsae_lens.experiments.benchmark.weights_cell import reference_cell, weights_cell
from mtsae_lens.unlearning import task as task_module
from mtsae_lens.unlearning.finetuning.finetune import FinetuneSettings, finetune
from mtsae_lens.unlearning.finetuning.losses import GradientAscent, GradientDifference
from mtsae_lens.unlearning.finetuning.sweeps import Sweep
from mtsae_lens.unlearning.measures.effects import as_logits, measure_model

RUNS = (
    Sweep(GradientDifference(), FinetuneSettings(1e-2, 2, 2, snapshots=(1, 2))),
    Sweep(GradientAscent(), FinetuneSettings(3e-3, 1, 2)),
)
PLACES = {"0.02": 1, "0.1": 2, "0.05 goal": 1}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Record sources and splits in the order of reading. Choices are given, because the tiny model is worse than a uniform guess."""
    monkeypatch.setattr(module, "read_sweep", lambda *args: dict(PLACES))
    found: list[tuple[str, str]] = []
    original = task_module.read_tokens

    def reading(source: str, split: Any, *args: Any, **settings: Any) -> Any:
        found.append((source, split))
        return original(source, split, *args, **settings)

    monkeypatch.setattr(task_module, "read_tokens", reading)
    return found


def test_snapshots_are_outcomes_on_tune_and_the_chosen_are_measured_on_test(
    make_setup: Any, text_task: Any, size: BenchmarkSize, read: list[tuple[str, str]]
) -> None:
    setup = make_setup(text_task)
    cell = weights_cell(setup, size, "mixed", RUNS, 3, attacked=False).to_json()
    json.dumps(cell, allow_nan=False)
    splits = [split for _, split in read]
    assert splits == sorted(splits, key=["train", "tune", "test"].index)  # TEST after all else
    assert list(cell["methods"]) == ["mixed"]
    result = cell["methods"]["mixed"]
    assert [(row["setting"]["lr"], row["setting"]["step"]) for row in result["tune"]] == [(1e-2, 1), (1e-2, 2), (3e-3, 1)]
    assert set(result) == {"tune", "test"}

    lm, task = setup.lm, setup.task
    forget = setup.training_table(text_task.forget_training)
    retain = [setup.training_table(source) for source in text_task.retain_training]
    settings = FinetuneSettings(1e-2, 2, 2, snapshots=(1, 2), seed=3)
    models = [s.model for s in finetune(lm.model, GradientDifference(), forget, retain, lm.cutter, settings)]
    for model, row in zip(models, result["tune"], strict=False):
        deltas = {
            source: measure_model(as_logits(model), lm.model, lm.cutter, table).nll_delta
            for source, table in task.tables("tune", lm.cutter, ("forget", "near", "far")).items()
        }
        assert [row["forget"], row["near"], row["far"]] == pytest.approx(list(deltas.values()), abs=1e-3)
    for name, place in PLACES.items():
        row = result["test"][name]
        assert row["setting"] == result["tune"][place]["setting"]
        assert list(row["corpora"]) == [corpus.source for corpus in text_task.corpora]
    for source, table in task.tables("test", lm.cutter).items():
        effect = measure_model(as_logits(models[1]), lm.model, lm.cutter, table)
        assert result["test"]["0.05 goal"]["corpora"][source]["nll_delta"] == pytest.approx(effect.nll_delta, abs=1e-3)
        assert result["test"]["0.1"]["corpora"][source] != result["test"]["0.05 goal"]["corpora"][source]


def test_an_attacked_cell_attacks_the_goal(
    make_setup: Any, text_task: Any, size: BenchmarkSize, read: list[tuple[str, str]]
) -> None:
    (result,) = weights_cell(make_setup(text_task), size, "mixed", RUNS, 0, attacked=True).to_json()["methods"].values()
    json.dumps(result, allow_nan=False)
    assert "gate" not in result["main"]
    assert "reference" in result["main"]
    assert list(result["attacks"]["relearning"]) == ["weights"]
    before = result["test"]["0.05 goal"]["corpora"][text_task.task(1).forget]["nll_edited"]
    for curve in result["attacks"]["relearning"]["weights"].values():
        assert curve[0]["nll"] == pytest.approx(before, abs=1e-4)


def test_the_reference_is_measured_as_other_weights(make_setup: Any, text_task: Any, size: BenchmarkSize) -> None:
    setup = make_setup(text_task)
    cell = reference_cell(setup, size, attacked=False).to_json()
    assert set(cell) == {"corpora", "main", "untouched"}
    assert cell["main"]["reference"]["nll_gap"] == pytest.approx(0, abs=1e-6)  # it is its own goal
    assert cell["main"]["reference"]["kl"] == pytest.approx(0, abs=1e-6)
    assert cell["untouched"]["calibrated_nll_delta"] == pytest.approx(0, abs=1e-6)
    gap = cell["corpora"][text_task.forget_training]["nll_delta"]
    assert cell["untouched"]["reference"]["nll_gap"] == pytest.approx(-gap, abs=1e-5)
    assert cell["untouched"]["reference"]["kl"] > 0
    json.dumps(cell, allow_nan=False)
    for source, table in setup.task.tables("test", setup.lm.cutter).items():
        effect = measure_model(as_logits(setup.reference), setup.lm.model, setup.lm.cutter, table)
        assert cell["corpora"][source]["nll_delta"] == pytest.approx(effect.nll_delta, abs=1e-5)
        assert abs(effect.nll_delta) > 0.1
